"""Ray jobs that build and encode layered corpora."""

from __future__ import annotations

import layerflow  # noqa: F401  (installs the torchvision guard in every worker)
