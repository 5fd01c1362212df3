"""Foreign pictures and videos -> layers' pixels."""
