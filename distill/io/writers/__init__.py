"""Writers of volumes, their pyramids and metadata; existing data is never modified in place."""
