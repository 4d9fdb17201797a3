"""`substitute`: trained kernels replaced by chains of small ones within a budget."""
