"""Decompositions of matrices and kernels on the host, in NumPy and SciPy."""
