"""The objects that cost most: where they lie, and lists of them."""
