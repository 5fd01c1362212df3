"""``view``: pages of clips, latents and samples."""
