"""Selection of schemes and ranks by error and cost."""
