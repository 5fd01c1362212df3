"""Importers of layered sets: what one is, and the table of those that are built in.

An importer lists what a folder holds and reads its stills, in a file of its own; to add one takes
that file and a line of ``IMPORTERS``. Most sets follow the naming conventions of
``pipelines.inputs.layouts``, whose importers are in ``pipelines.inputs.grouped``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from layerflow.plugins import Plugins
from pipelines.inputs.layouts import Group
from pipelines.readers.layered_stills import StillLayers, read_layers

if TYPE_CHECKING:
    from pipelines.inputs.exported import ExportPart
    from pipelines.inputs.tables import TablePart

IMPORTERS: dict[str, str] = {
    "auto": "pipelines.inputs.grouped:ANY",
    "layerflow-images": "pipelines.inputs.index_files:LAYERED_IMAGES",
    "mulan": "pipelines.inputs.mulan:MULAN",
    "dataset": "pipelines.inputs.tables:DATASET",
    "rgba": "pipelines.inputs.grouped:RGBA",
    "pairs": "pipelines.inputs.grouped:PAIRS",
    "matting": "pipelines.inputs.grouped:MATTING",
    "triplets": "pipelines.inputs.grouped:TRIPLETS",
    "davis": "pipelines.inputs.grouped:DAVIS",
    "layerflow": "pipelines.inputs.grouped:LAYERFLOW",
    "vidlayer": "pipelines.inputs.grouped:VIDLAYER",
    "psd": "pipelines.inputs.grouped:PSD",
    "stills": "pipelines.inputs.grouped:STILLS",
    "films": "pipelines.inputs.grouped:VIDEOS",
    "export": "pipelines.inputs.exported:EXPORT",
}
"""``--layout`` -> ``module:object``, in the order in which ``auto`` asks them."""
LAYOUTS = Plugins(
    "layerflow.importers", "layout", IMPORTERS, ("name", "recognises", "list", "read")
)
"""``Importer`` objects: ours, and those of installed packages. ``auto`` asks ours only, so that
what is installed does not change what a folder is taken for."""


@dataclass
class Listing:
    """What a folder holds: stills, videos, files of tables, pieces of exports, prompts by uri.

    The layers of a video are files by the roles of ``layouts.ROLE_WORDS``; those of a still are
    what its importer reads.
    """

    stills: list[Group] = field(default_factory=list)
    videos: list[Group] = field(default_factory=list)
    tables: list[TablePart] = field(default_factory=list)
    prompts: dict[str, Mapping[str, str]] = field(default_factory=dict)
    exported: list[ExportPart] = field(default_factory=list)

    def __iadd__(self, other: Listing) -> Listing:
        self.stills += other.stills
        self.videos += other.videos
        self.tables += other.tables
        self.prompts |= other.prompts
        self.exported += other.exported
        return self


class Importer(ABC):
    """One layout; what it has of its own beside ``list`` it overrides."""

    name: str

    def recognises(self, root: Path) -> bool:
        """Whether a folder is certainly of this layout (``--layout auto``)."""
        return False

    @abstractmethod
    def list(self, root: Path) -> Listing:
        """Everything in a folder, sorted; ``problem`` says what an entry misses.

        Raises ValueError when its index is broken.
        """

    def read(self, files: Mapping[str, Path]) -> StillLayers:
        """The layers of a listed still, by its files. Raises MediaError or ValueError."""
        return read_layers(files)


def load_importer(layout: str) -> Importer:
    """The importer of a name, of ``LAYOUTS``. ValueError for another name."""
    importer: Importer = LAYOUTS.checked(layout, LAYOUTS.load(layout))
    return importer


def importer_of(layout: str, root: Path) -> Importer:
    """The importer that ``--layout`` names; for ``auto`` the one that recognises the folder."""
    if layout != "auto":
        return load_importer(layout)
    found = (name for name in IMPORTERS if load_importer(name).recognises(root))
    return load_importer(next(found, "auto"))


def list_folder(layout: str, root: Path) -> Listing:
    """What a folder holds by its layout; every still knows its importer."""
    importer = importer_of(layout, root)
    found = importer.list(root)
    name = importer.name if layout == "auto" else layout
    found.stills = [replace(still, importer=name) for still in found.stills]
    return found
