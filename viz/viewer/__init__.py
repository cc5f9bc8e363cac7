"""Results in the browser."""
