"""The optimiser's loop, its state and its timing."""
