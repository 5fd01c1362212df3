"""The weightless matting backend."""
