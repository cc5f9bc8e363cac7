"""Schedule of a training: work of each step, number of steps, and expected duration."""
