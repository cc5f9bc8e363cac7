"""The store that a stream writes, and its manifest."""
