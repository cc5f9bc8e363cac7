"""The Python interface: models on arrays in memory, and the commands as functions."""
