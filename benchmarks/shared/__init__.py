"""What the benchmarks share: one timer, one table of layers, one set of networks, one plain form in lax."""
