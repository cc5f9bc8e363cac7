"""Sources of sections, and detection of bad sections."""
