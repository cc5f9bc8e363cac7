"""Data to train and evaluate on: public volumes, phantoms, crops."""
