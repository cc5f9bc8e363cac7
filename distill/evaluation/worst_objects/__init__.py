"""Locations and lists of the objects with the largest errors."""
