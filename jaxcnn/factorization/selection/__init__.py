"""Selects schemes and ranks by error and cost."""
