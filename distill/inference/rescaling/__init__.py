"""Run a model on the voxel size that it was trained on, and return results on the source's own."""
