"""The sections of a stream: where they come from, and which of them are bad."""
