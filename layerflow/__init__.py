"""LayerFlow: generate, decompose and complete video as layers (arXiv 2506.04228)."""

from __future__ import annotations

from layerflow import compat

compat.install()

__version__ = "0.1.0"
