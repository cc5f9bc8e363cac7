"""Loss terms of a training, and their weights."""
