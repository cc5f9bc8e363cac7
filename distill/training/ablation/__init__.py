"""The same training with and without each term, scored alike."""
