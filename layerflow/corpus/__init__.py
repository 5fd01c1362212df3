"""Corpora and latents on disk: tables, checks, statistics, derived and published ones."""
