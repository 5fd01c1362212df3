"""Foreign pictures and films -> layers' pixels."""
