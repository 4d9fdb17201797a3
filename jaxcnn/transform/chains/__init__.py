"""`with_chains`: a function evaluated with chains of small kernels in place of kernels."""
