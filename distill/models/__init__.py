"""Build networks, load and save their weights, and the models that ship with the package."""
