"""What happens to a corpus after it was made: rows removed for good, values corrected."""
