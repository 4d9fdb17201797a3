"""Schemes that replace a trained kernel by a `KernelChain` of smaller ones, one file for each."""
