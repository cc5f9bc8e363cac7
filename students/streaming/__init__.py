"""The student on a stream of sections."""
