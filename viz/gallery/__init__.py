"""Augmentations before and after."""
