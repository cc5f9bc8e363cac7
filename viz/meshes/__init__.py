"""Neurons in three dimensions."""
