"""Seam scores: how much window borders show in an embedding."""
