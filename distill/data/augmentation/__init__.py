"""Augmentation of training volumes: geometry and grey values."""
