"""Segment affinities without a network, and stitch segmented blocks."""
