"""Measures of layers, baselines, and the tables of an evaluation."""
