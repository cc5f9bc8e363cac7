"""Split and merge errors of a section."""
