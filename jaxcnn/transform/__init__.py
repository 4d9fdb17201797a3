"""Transformations of whole JAX functions: `accelerate` and `summarize`."""
