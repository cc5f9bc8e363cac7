"""Blockwise segmentation of volumes of any size, in one process or many (`distill segment`)."""
