"""Scores of segmentations, affinities and embeddings against ground truth."""
