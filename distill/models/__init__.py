"""Build networks, load and save their weights, and locate the bundled models."""
