"""Draw embeddings as colours."""
