"""``encode``: a corpus -> latents and prompt embeddings."""
