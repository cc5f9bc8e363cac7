"""What every part builds on: errors, voxel geometry, affinities, labels, grey values, files, hardware."""
