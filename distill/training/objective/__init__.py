"""The loss terms of a training, and how they are weighted."""
