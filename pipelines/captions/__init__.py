"""Prompts from vision-language models."""
