"""View results in the browser."""
