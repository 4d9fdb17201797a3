"""Reads jaxprs and evaluates them again with rules by primitive."""
