"""Expected run length of a segmentation on skeletons."""
