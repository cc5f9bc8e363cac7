"""Train teacher, student and the decoder that they share."""
