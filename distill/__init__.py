"""Distil a 3D affinity-guided-query teacher into a fast 2D student for neuron segmentation in electron microscopy."""

__version__ = "0.1.0"
