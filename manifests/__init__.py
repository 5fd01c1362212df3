"""Manifest schemas and ready YAML files."""
