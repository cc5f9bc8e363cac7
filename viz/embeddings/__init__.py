"""Embeddings as colours."""
