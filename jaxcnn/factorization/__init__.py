"""Replaces a trained kernel by a `KernelChain` of smaller ones.

`exact` and `numerics` know no schemes; `schemes` builds on them; `selection` and `responses` build on `schemes`.
"""
