"""Foregrounds and backgrounds to paste: what a corpus or folder holds, and what was loaded of it.

Listing opens no media. A source that turns out to be unusable raises MediaError when it is loaded
(``pipelines.paste.load``), and the job records it as rejected.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, U8
from layerflow.corpus.columns import RIGHTS
from layerflow.corpus.published import is_corpus
from layerflow.corpus.table import Corpus
from layerflow.locations import clean_uri, escape_name, root_of, without_secrets
from pipelines.gates import judge
from pipelines.inputs.index_files import index_of
from pipelines.inputs.layouts import Group, group_files, group_listed, split_videos, words_of
from pipelines.inputs.listing import uri_of
from pipelines.inputs.metadata import said_of
from pipelines.inputs.prompts import Table, entry_for, sidecar
from pipelines.inputs.remote import list_bucket
from pipelines.inputs.twins import Twins, traits_of
from pipelines.readers.stills import still_size

F64 = NDArray[np.float64]
_ROW_COLUMNS = ("id", "kind", "num_frames", "origin", "quality")


@dataclass(frozen=True)
class PasteSource:
    """One foreground or background before it is loaded; plain values.

    kind: ``still``, ``video`` or ``row`` (of a corpus). files: role -> path or URL, for a row the
    corpus. uri: the name under which the corpus records it. stamp: what tells two sources apart.
    beside: URLs of the captions of remote files (``pipelines.inputs.remote`` makes all local).
    told: what an index file of its folder says of it.
    """

    kind: str
    uri: str
    name: str
    files: tuple[tuple[str, str], ...]
    stamp: str
    row: int = -1
    beside: tuple[str, ...] = ()
    told: tuple[tuple[str, str], ...] = ()

    def path(self, *roles: str) -> Path | None:
        """The file of the first role that there is."""
        layers = self.layers
        return next((layers[role][0] for role in roles if role in layers), None)

    @property
    def layers(self) -> dict[str, list[Path]]:
        """role -> its file, or the frames in order."""
        found: dict[str, list[Path]] = {}
        for role, path in self.files:
            found.setdefault(role, []).append(Path(path))
        return found


@dataclass(frozen=True)
class Foreground:
    """A loaded foreground, cropped to what is visible.

    rgba: straight uint8 ``[T, h, w, 4]``, T = 1 for a still. frame: height and width of the
    picture that it was cropped from, in pixels of ``rgba``; corner: (y, x) of the crop in it.
    scale: pixels of ``rgba`` per pixel of the source. cut: sides of the picture that cut the
    object off (``top``, ``bottom``, ``left``, ``right``). fps is 0 for a still. numbers: of the
    frames in a source of which only these were loaded.
    """

    rgba: U8
    frame: tuple[float, float]
    corner: tuple[float, float]
    scale: float
    cut: frozenset[str]
    fps: float
    prompt: str
    record: dict[str, Any]
    alpha_kind: str = "soft"
    numbers: tuple[int, ...] = ()

    @property
    def moving(self) -> bool:
        return len(self.rgba) > 1


@dataclass(frozen=True)
class Background:
    """A loaded background at the clip's size and rate.

    frames: uint8 ``[T, H, W, 3]``. camera: float64 ``[T, 3, 3]``, homographies from pixels of frame
    0 to pixels of frame t. static: share of neighbouring frames without camera motion.
    """

    frames: U8
    camera: F64
    static: float
    residual: float
    prompt: str
    kind: str
    record: dict[str, Any]


def list_foregrounds(inputs: Sequence[str], gate: str) -> list[PasteSource]:
    """Sources with alpha in sorted order: corpus rows that pass ``gate``, groups of a folder.

    Raises ValueError when an input does not exist or nothing is found.
    """
    found = [source for item in inputs for source in _listed(item, gate)]
    hint = "" if gate == "off" else f"; of mined clips, none passes the gate {gate} (--gate)"
    return _checked(found, FOREGROUND, inputs, hint)


def list_backgrounds(inputs: Sequence[str]) -> list[PasteSource]:
    """Sources without alpha, in sorted order: corpus rows (their clean background) and files."""
    found = [source for item in inputs for source in _listed(item, None)]
    return _checked(found, BACKGROUND, inputs)


def _checked(
    found: list[PasteSource], what: str, inputs: Sequence[str], hint: str = ""
) -> list[PasteSource]:
    unique = {source.stamp: source for source in found}
    if not unique:
        raise ValueError(without_secrets(f"no {what} in {', '.join(inputs)}{hint}"))
    return sorted(unique.values(), key=lambda source: (source.uri, source.stamp))


def _listed(item: str, gate: str | None) -> list[PasteSource]:
    root = Path(item)
    if is_corpus(item):
        return _rows(item, gate)
    if "://" in item:
        return _of_bucket(item, gate)
    if root.is_dir():
        groups = _chosen(group_files(root), gate)
    elif root.is_file():
        name = PurePosixPath(escape_name(root.name))
        groups = [Group(str(name), name.stem, (("file", root),))]
    else:
        raise ValueError(f"{without_secrets(item)}: no such corpus, folder or file")
    videos, stills = split_videos(groups)
    index = index_of(root) if root.is_dir() else {}
    return [_source(found, index=index) for found in (*videos, *stills)]


def _chosen(groups: list[Group], gate: str | None) -> list[Group]:
    if gate is None:
        return [single for group in groups for single in _background_files(group)]
    return [group for group in groups if set(group.roles) != {BACKGROUND}]


def _of_bucket(url: str, gate: str | None) -> list[PasteSource]:
    bucket = list_bucket(url)
    groups = _chosen(group_listed(bucket.listed, Twins(bucket.reading(traits_of))), gate)
    videos, stills = split_videos(groups, bucket.reading(still_size), lambda _: True)
    sources = []
    for found in (*videos, *stills):
        source = _source(
            replace(found, uri=bucket.url(found.uri)), bucket.url, lambda path: bucket.sizes[path]
        )
        beside = bucket.captions([path for _, path in found.files])
        sources.append(replace(source, uri=uri_of(source.uri, bucket.root), beside=beside))
    return sources


def _background_files(group: Group) -> list[Group]:
    """A group's background, or the file that stands alone; a whole picture shows its subject."""
    roles = group.roles
    chosen = roles.get(BACKGROUND, roles.get("file"))
    if chosen is None and ALPHA not in roles:
        chosen = roles.get(BLENDED)
    return [Group(group.uri, group.key, (("file", chosen),))] if chosen else []


def _source(
    found: Group,
    location: Callable[[Path], str] = os.path.abspath,
    size: Callable[[Path], int] = lambda path: path.stat().st_size,
    index: Table | None = None,
) -> PasteSource:
    """location, size: of a file."""
    return PasteSource(
        "video" if found.moving else "still",
        found.uri,
        found.name,
        tuple((role, location(path)) for role, path in found.files),
        f"{found.uri}:{'+'.join(str(size(path)) for _, path in found.files)}",
        told=tuple(sorted(entry_for(found.uri, index, found.name).items())),
    )


def _rows(where: str, gate: str | None) -> list[PasteSource]:
    corpus, sources = Corpus.open(where if "://" in where else Path(where).absolute()), []
    files = (("corpus", corpus.address),)
    for index, row in enumerate(corpus.rows(_ROW_COLUMNS)):
        if gate is not None and row["kind"] == "mined" and judge(row["quality"] or {}, gate):
            continue
        uri = clean_uri(row["origin"]["uri"]) + f"#{row['id']}"
        sources.append(PasteSource("row", uri, row["id"], files, row["id"], index))
    return sources


def prompt_of(source: PasteSource, layer: str) -> str:
    """A caption of a file source: from its sidecar, else from its name. ValueError if broken."""
    paths = [Path(path) for _, path in source.files]
    beside = (sidecar(path, root_of(path, source.uri)) for path in paths)
    for said in (dict(source.told), *beside):
        for name in (layer, BLENDED):
            if said.get(name):
                return said[name]
    return words_of(source.name) or ("an object" if layer == FOREGROUND else "a scene")


def rights_of(source: PasteSource) -> dict[str, str | None]:
    """Licence and attribution of a file source: all that states any. ValueError if broken."""
    paths = [Path(path) for _, path in source.files]
    said = said_of(source.uri, source.name, paths, dict(source.told))
    return {name: said.get(name) for name in RIGHTS}
