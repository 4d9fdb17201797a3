"""Trained networks from packages: substitution of their kernels, and their speed through `accelerate`."""
