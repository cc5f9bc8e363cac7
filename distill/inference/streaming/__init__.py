"""Segment a stream of sections in bounded memory, resumable at any point (`distill stream`)."""
