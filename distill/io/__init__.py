"""Volumes in and out: readers and writers of every format, and what a file holds."""
