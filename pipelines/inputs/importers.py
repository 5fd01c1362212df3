"""The importers of layered sets: which layouts there are, how each is recognised and listed.

All of them answer one protocol. Most sets follow the naming conventions of
``pipelines.inputs.layouts``; naming their layout adds a check that nothing is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol, cast

from layerflow.plugins import Plugins
from pipelines.inputs import mulan, tables
from pipelines.inputs.layouts import Film, Group, files_below, group_files, split_films
from pipelines.inputs.listing import STILL_SUFFIXES, VIDEO_SUFFIXES
from pipelines.inputs.metadata import index_of, layered_images
from pipelines.inputs.twins import Twins
from pipelines.readers.photoshop import SUFFIXES as DOCUMENT_SUFFIXES

IMPORTERS: dict[str, str] = {
    "layerflow-images": "pipelines.inputs.importers:LAYERFLOW_IMAGES",
    "mulan": "pipelines.inputs.importers:MULAN",
    "dataset": "pipelines.inputs.importers:DATASET",
    "rgba": "pipelines.inputs.importers:RGBA",
    "pairs": "pipelines.inputs.importers:PAIRS",
    "matting": "pipelines.inputs.importers:MATTING",
    "triplets": "pipelines.inputs.importers:TRIPLETS",
    "davis": "pipelines.inputs.importers:DAVIS",
    "layerflow": "pipelines.inputs.importers:LAYERFLOW",
    "vidlayer": "pipelines.inputs.importers:VIDLAYER",
    "psd": "pipelines.inputs.importers:PSD",
    "stills": "pipelines.inputs.importers:STILLS",
    "films": "pipelines.inputs.importers:FILMS",
}
"""``--layout`` -> ``module:object``, in the order in which ``auto`` asks them."""
LAYOUTS = Plugins(
    "layerflow.importers", "layout", IMPORTERS, ("name", "recognises", "list", "lacks")
)
"""``Importer`` objects: ours, and those of installed packages. ``auto`` asks ours only, so that
what is installed does not change what a folder is taken for."""

Roles = frozenset[str]


@dataclass
class Listing:
    """What a folder holds: stills, films, files of tables, prompts by uri."""

    stills: list[Group] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    parts: list[tables.Part] = field(default_factory=list)
    prompts: dict[str, Mapping[str, str]] = field(default_factory=dict)


class Importer(Protocol):
    """One layout. ``lacks`` says what a still or film with some roles misses, or None."""

    @property
    def name(self) -> str: ...

    def recognises(self, root: Path) -> bool:
        """Whether a folder is certainly of this layout (``--layout auto``)."""

    def list(self, root: Path) -> Listing:
        """Everything in a folder, sorted. Raises ValueError when its index is broken."""

    def lacks(self, roles: Iterable[str]) -> str | None: ...


@dataclass(frozen=True)
class Grouped:
    """Files that belong together by their names. needs: sets of roles of which one must be there;
    films, stills: what is taken."""

    name: str
    needs: tuple[Roles, ...] = ()
    films: bool = True
    stills: bool = True
    suffixes: frozenset[str] = STILL_SUFFIXES | VIDEO_SUFFIXES | DOCUMENT_SUFFIXES

    def recognises(self, root: Path) -> bool:
        return False  # ``auto`` reads all of these alike

    def list(self, root: Path) -> Listing:
        groups = group_files(root, self.suffixes, Twins(asked=self.name == "pairs"))
        films, stills = split_films(groups) if self.films else ([], groups)
        return Listing(stills if self.stills else [], films, prompts=dict(index_of(root)))

    def lacks(self, roles: Iterable[str]) -> str | None:
        found = set(roles)
        if not self.needs or any(need <= found for need in self.needs):
            return None
        wanted = " or ".join(" + ".join(sorted(need)) for need in self.needs)
        return f"layout {self.name} needs {wanted}; here is {' + '.join(sorted(found))}"


@dataclass(frozen=True)
class LayeredImages:
    """LayerFlow's layered images: a ``meta.json`` that names the files."""

    name: str = "layerflow-images"

    def recognises(self, root: Path) -> bool:
        return layered_images(root) is not None

    def list(self, root: Path) -> Listing:
        listed = layered_images(root)
        if listed is None:
            raise ValueError(f"{root.name}: no meta.json with images_fg in it")
        return Listing(stills=listed[0], prompts=dict(listed[1]))

    def lacks(self, roles: Iterable[str]) -> str | None:
        return None


@dataclass(frozen=True)
class Mulan:
    """MuLAn's annotations, each with its base image of the same name below the same folder."""

    name: str = "mulan"

    def recognises(self, root: Path) -> bool:
        return any(self._annotations(root))

    def _annotations(self, root: Path) -> Iterator[tuple[Path, PurePosixPath]]:
        for path, relative in files_below(root, {".zl"}):
            if path.name.lower().endswith(mulan.SUFFIX):
                yield path, relative

    def list(self, root: Path) -> Listing:
        bases: dict[str, Path] = {}
        for path, _ in files_below(root, STILL_SUFFIXES):
            bases.setdefault(path.stem, path)
        stills = []
        for path, relative in self._annotations(root):
            stem = path.name[: -len(mulan.SUFFIX)]
            base = bases.get(stem)
            files = [("annotation", path), *([("blended", base)] if base is not None else [])]
            stills.append(Group(relative.as_posix(), stem, tuple(files)))
        return Listing(stills=stills)

    def lacks(self, roles: Iterable[str]) -> str | None:
        if "blended" in set(roles):
            return None
        return "its base image is missing: put the picture of the same name below the same folder"


@dataclass(frozen=True)
class Dataset:
    """Parquet or Arrow tables, as on the Hub, by a column mapping."""

    name: str = "dataset"

    def recognises(self, root: Path) -> bool:
        if next(files_below(root, tables.SUFFIXES), None) is None:
            return False
        return next(files_below(root, STILL_SUFFIXES | VIDEO_SUFFIXES), None) is None

    def list(self, root: Path) -> Listing:
        return Listing(parts=tables.list_parts(str(root)))

    def lacks(self, roles: Iterable[str]) -> str | None:
        return None


def _needs(*choices: Sequence[str]) -> tuple[Roles, ...]:
    return tuple(frozenset(choice) for choice in choices)


_ALL = ("foreground", "alpha", "background", "blended")
LAYERFLOW_IMAGES, MULAN, DATASET = LayeredImages(), Mulan(), Dataset()
RGBA = Grouped("rgba", _needs(["file"], ["foreground"]), films=False, suffixes=STILL_SUFFIXES)
PAIRS = Grouped("pairs", _needs(["blended", "alpha"], ["foreground", "alpha"]), films=False)
MATTING = Grouped("matting", _needs(["foreground", "alpha"]))
TRIPLETS = Grouped("triplets", _needs(["blended", "alpha", "background"]))
DAVIS = Grouped("davis", _needs(["blended", "alpha"]), stills=False)
LAYERFLOW = Grouped("layerflow", _needs(["blended", "background", "alpha"], _ALL), stills=False)
VIDLAYER = Grouped("vidlayer", _needs(["blended", "background", "alpha"]), stills=False)
PSD = Grouped("psd", suffixes=DOCUMENT_SUFFIXES, films=False)
STILLS = Grouped("stills", films=False, suffixes=STILL_SUFFIXES)
FILMS = Grouped("films", stills=False, suffixes=STILL_SUFFIXES | VIDEO_SUFFIXES)
AUTO = Grouped("auto")


def importer_of(layout: str, root: Path) -> Importer:
    """The importer that ``--layout`` names; for ``auto`` the one that recognises the folder.

    Raises ValueError for a name that nobody offers.
    """
    if layout != "auto":
        return cast(Importer, LAYOUTS.checked(layout, LAYOUTS.load(layout)))
    for name in IMPORTERS:
        importer = cast(Importer, LAYOUTS.load(name))
        if importer.recognises(root):
            return importer
    return AUTO
