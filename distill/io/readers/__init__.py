"""Readers of one format each."""
