"""Figures, colours and the seam score."""
