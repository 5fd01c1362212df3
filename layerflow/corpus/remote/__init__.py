"""Latents in an object store: where each row lies, a bounded local cache, and rows read ahead."""
