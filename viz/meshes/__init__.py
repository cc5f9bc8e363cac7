"""Neurons in 3D."""
