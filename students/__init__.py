"""2D student networks, their adapter to the decoder, and the section stream."""
