"""Gallery of augmentations, before and after."""
