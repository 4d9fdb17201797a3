"""Shared by all benchmarks: one timer, one table of layers, one set of networks, one plain form in lax."""
