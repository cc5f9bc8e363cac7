"""Seam scores: visibility of window borders in an embedding."""
