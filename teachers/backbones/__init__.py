"""Networks and blocks that several teachers share."""
