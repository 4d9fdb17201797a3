"""Ways of computing a pool."""
