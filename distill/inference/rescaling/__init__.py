"""Apply a model at the voxel size of its training data, and return results on the source's own grid."""
