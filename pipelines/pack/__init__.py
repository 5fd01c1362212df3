"""``pack``: layered stills and videos -> clips."""
