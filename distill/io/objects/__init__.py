"""Surfaces and skeletons of segmented objects in Neuroglancer precomputed, block by block."""
