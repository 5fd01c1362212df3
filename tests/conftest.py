"""Fixtures that more than one test file needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A Ray that its first call starts by itself is not set up as jobs do, and outlives its test.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# rembg imports pymatting, which compiles for a minute on first import what no test calls.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
# No test depends on which weights whoever runs it has in a cache: there are none.
os.environ["LAYERFLOW_WEIGHTS"] = os.devnull
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes: threads of each would only spin
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import layerflow  # noqa: F401  (first: a torchvision that does not fit torch breaks diffusers)

if TYPE_CHECKING:
    from tests.support.hub_double import Hub
    from tests.support.hub_kit import Client


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test media beside the checkout; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "media").is_dir():
        pytest.skip("the shared media folder (../shared) is absent")
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A double of the Hub on a port of its own."""
    from tests.support.hub_double import hub_double

    with hub_double() as running:
        yield running


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A process with the real clients, pointed at the double."""
    from tests.support.hub_kit import Client

    opened = Client(hub, tmp_path_factory.mktemp("home"))
    yield opened
    opened.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
