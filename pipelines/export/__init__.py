"""``layerflow export``: a corpus as files for other programs, which ``pack`` takes back."""
