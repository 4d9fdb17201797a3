"""Measurements behind the choice of a method: seeded families of layers, their times by method, and beside PyTorch."""
