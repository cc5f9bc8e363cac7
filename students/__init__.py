"""2D student networks, their adapter to the shared decoder, and the section stream."""
