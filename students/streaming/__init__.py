"""Run the student on a stream of sections."""
