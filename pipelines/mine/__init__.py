"""``mine``: real video -> layered clips."""
