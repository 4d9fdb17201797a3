"""Exact re-expressions: other kernels that compute the same function."""
