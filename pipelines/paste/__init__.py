"""``paste``: matted foregrounds over other backgrounds."""
