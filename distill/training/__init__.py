"""Train teacher, student and shared decoder."""
