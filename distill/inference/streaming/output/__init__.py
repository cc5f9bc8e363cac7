"""Store and manifest of a stream."""
