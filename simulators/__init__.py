"""A world with known truth, sensors that see it, and players of recordings."""
