"""Training loop, its saved state and its timing."""
