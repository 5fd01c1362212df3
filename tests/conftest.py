"""Fixtures that more than one test file needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import layerflow  # noqa: F401  (first: a torchvision that does not fit torch breaks diffusers)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test media beside the checkout; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "media").is_dir():
        pytest.skip("the shared media folder (../shared) is absent")
    return folder
