"""Training and evaluation data: public volumes, phantoms, crops, augmentation."""
