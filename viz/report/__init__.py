"""A run as one web page."""
