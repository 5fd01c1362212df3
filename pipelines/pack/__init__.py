"""``pack``: layered stills and films -> clips."""
