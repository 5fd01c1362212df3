"""Drawn media with known layers, for the demo and tests."""
