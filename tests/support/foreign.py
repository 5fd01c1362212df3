"""A package of somebody else with one plug-in of every kind, and its installation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-layers"
version = "1.2"

[project.entry-points."layerflow.matting"]
acme-green = "acme_layers:GreenMatter"

[project.entry-points."layerflow.captioners"]
acme-words = "acme_layers:Words"

[project.entry-points."layerflow.importers"]
acme-cards = "acme_layers:CARDS"

[project.entry-points."layerflow.refiners"]
acme-green-edge = "acme_layers:GreenEdge"

[project.entry-points."layerflow.inpainters"]
acme-pink = "acme_layers:Pink"

[project.entry-points."layerflow.bases"]
acme-small = "acme_bases:SMALL"

[tool.setuptools]
py-modules = ["acme_layers", "acme_bases"]
"""

MODULE = """
import numpy as np

from pipelines.inputs.importers import Importer, Listing
from pipelines.inputs.layouts import Group
from pipelines.matting import Matte

ANSWERS = {"only the subject": "A striped disc rolls on.", "the place: what": "A plain green wall."}


class GreenMatter:
    name, version, licence = "acme-green", "1.2", "MIT"
    needs = frozenset()

    def __init__(self, device="cpu"):
        self.device = device

    def __call__(self, frames, backdrop=None):
        red, green, blue = np.moveaxis(frames.astype(np.int16), -1, 0)
        return Matte((green - np.maximum(red, blue) < 60).astype(np.float32))


class GreenEdge:
    name, licence = "acme-green-edge", "MIT"

    def __call__(self, frames, trimap):
        return GreenMatter()(frames).alpha


class Words:
    name, licence = "acme-words", "MIT"

    def __init__(self, options):
        self.options = options

    def check(self):
        pass

    def answer(self, requests):
        texts = [request.text for request in requests]
        found = [next((a for mark, a in ANSWERS.items() if mark in text), "") for text in texts]
        return [answer or "A disc before a wall." for answer in found]


class Pink:
    name, licence = "acme-pink", "MIT"

    def __call__(self, holes):
        pictures = [hole.picture.copy() for hole in holes]
        for picture, hole in zip(pictures, holes):
            picture[hole.where] = (250, 100, 180)
        return pictures


class Cards(Importer):
    name = "acme-cards"

    def list(self, root):
        found = []
        for front in sorted(root.glob("front-*.png")):
            back = front.with_name(front.name.replace("front", "back"))
            files = (("background", back), ("foreground", front))
            found.append(Group(front.name, front.stem, files))
        return Listing(stills=found)


CARDS = Cards()
"""

BASES = """
from layerflow.model.cogvideox.presets import TINY, write_tiny
from layerflow.model.presets import ModelPreset

SMALL = ModelPreset("one block", write_tiny, {**TINY, "num_layers": 1}, needs_base=False)
"""


def install(folder: Path) -> Path:
    """Build the package and install it; returns the folder for the search path."""
    project, site = folder / "acme", folder / "site"
    project.mkdir(parents=True)
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "acme_layers.py").write_text(MODULE)
    (project / "acme_bases.py").write_text(BASES)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*command, "--target", str(site), str(project)], check=True)
    return site


def dist_info(site: Path, name: str, points: dict[str, dict[str, str]]) -> None:
    """What an installed package leaves of itself: its name, version 1.0 and entry points."""
    folder = site / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "RECORD").write_text("")
    lines = []
    for group, targets in points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in targets.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
