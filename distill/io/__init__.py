"""Readers and writers of volumes in every supported format, and descriptions of files."""
