"""Schemes: one file for each way of writing a kernel as a chain."""
