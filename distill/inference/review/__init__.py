"""Export a segmentation for proofreading: doubtful contacts, contact graph and supervoxels."""
