"""Geometric and grey-value augmentation of training volumes."""
