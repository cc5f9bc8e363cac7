"""Ablations: the same training with and without each distillation term, scored in the same way."""
