"""Foundations of all packages: errors, voxel geometry, affinities, labels, grey values, files, hardware."""
