"""Expected run length on skeletons."""
