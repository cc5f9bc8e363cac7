"""Report of a run as one web page."""
