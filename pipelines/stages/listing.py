"""List input files, local and remote: sorted, inside their roots, never showing a local path."""

from __future__ import annotations

import csv
import glob
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif", ".ogv"}
    | {".apng"}
)
STILL_SUFFIXES = frozenset({".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".avif"})
TABLE_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})
MATTE_MARKS = frozenset({".mask", ".alpha"})


@dataclass(frozen=True)
class Source:
    """One input file.

    location: a local path or a URL that fsspec opens. uri: the name under which the corpus records
    it. row: the other columns of the table that named it.
    """

    location: str
    uri: str
    row: Mapping[str, str] = field(default_factory=dict)

    @property
    def remote(self) -> bool:
        return "://" in self.location

    @property
    def path(self) -> Path:
        """The local file. ValueError for a remote one: see ``local_copy``."""
        if self.remote:
            raise ValueError(f"{self.uri} is remote")
        return Path(self.location)


def list_sources(inputs: Sequence[str], suffixes: Iterable[str] = VIDEO_SUFFIXES) -> list[Source]:
    """Input files in sorted order, each once.

    An input is a file, a folder (everything below it), a glob pattern, a URL that fsspec knows
    (``s3://``, ``hf://``; file or folder), or a table (CSV, JSONL, Parquet) with a ``video`` column
    of URLs or paths below the table's folder. A uri is the path below its input folder, or the
    name of a file given by itself, or the URL. Left out are links that lead out of their folder,
    and mattes (``clip.mask.mkv``, ``clip.alpha.png``) that lie beside what they belong to.

    Raises ValueError for an input that does not exist, or when nothing is found.
    """
    allowed = frozenset(suffixes)
    found: dict[str, Source] = {}
    for item in inputs:
        for source in _listed(item, allowed):
            key = source.location if source.remote else str(source.path.resolve())
            found.setdefault(key, source)
    if not found:
        raise ValueError(f"no input file ({', '.join(sorted(allowed))}) in {', '.join(inputs)}")
    return sorted(found.values(), key=lambda source: (source.uri, source.location))


def _listed(item: str, suffixes: frozenset[str]) -> Iterable[Source]:
    if "://" in item:
        return _remote(item, suffixes)
    root = Path(item)
    if root.is_file():
        if root.suffix.lower() in TABLE_SUFFIXES:
            return _tabled(root)
        return [Source(str(root), root.name)]
    if root.is_dir():
        return _below(root, suffixes)
    if glob.has_magic(item):
        hits = (Path(hit) for hit in sorted(glob.glob(item, recursive=True)))
        return [Source(str(p), p.name) for p in hits if p.is_file() and _wanted(p, suffixes)]
    raise ValueError(f"{item}: no such file or folder")


def _below(root: Path, suffixes: frozenset[str]) -> Iterable[Source]:
    base = root.resolve()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not _wanted(path, suffixes) or not path.is_file():
            continue
        if path.resolve().is_relative_to(base):
            yield Source(str(path), relative.as_posix())


def _wanted(path: Path, suffixes: frozenset[str]) -> bool:
    return path.suffix.lower() in suffixes and not _is_matte_of_a_neighbour(path)


def matte_beside(path: Path) -> Path | None:
    """The film of a local video's matte: ``clip.mask.mkv`` or ``clip.alpha.mp4`` beside it."""
    names = (f"{path.stem}{m}{s}" for m in sorted(MATTE_MARKS) for s in sorted(VIDEO_SUFFIXES))
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def _is_matte_of_a_neighbour(path: Path) -> bool:
    base = Path(path.stem)
    if base.suffix.lower() not in MATTE_MARKS:
        return False
    neighbours = (path.with_name(base.stem + s) for s in VIDEO_SUFFIXES | STILL_SUFFIXES)
    return any(neighbour.is_file() for neighbour in neighbours)


def _remote(url: str, suffixes: frozenset[str]) -> Iterable[Source]:
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(url)
        names = system.find(root)
    except Exception as error:
        raise ValueError(f"{url}: cannot be listed: {error}") from error
    if not names:
        raise ValueError(f"{url}: no such file or folder")
    for name in sorted(names):
        if name == root or Path(name).suffix.lower() in suffixes:
            location = system.unstrip_protocol(name)
            yield Source(location, location)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV, JSONL or Parquet table. Raises ValueError that names the file."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        if suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines if line.strip()]
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
            return rows
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    raise ValueError(f"{path}: a table is .csv, .jsonl or .parquet")


def _tabled(table: Path) -> Iterable[Source]:
    base = table.parent.resolve()
    for number, row in enumerate(read_rows(table), 1):
        video = row.get("video") if isinstance(row, dict) else None
        if not isinstance(video, str) or not video:
            raise ValueError(f"{table}: row {number} has no video column")
        rest = {k: v for k, v in row.items() if k != "video" and isinstance(v, str) and v}
        if "://" in video:
            yield Source(video, video, rest)
            continue
        path = (base / video).resolve()
        if not path.is_relative_to(base):
            raise ValueError(f"{table}: row {number}: {video!r} leads out of the table's folder")
        yield Source(str(path), path.relative_to(base).as_posix(), rest)


@contextmanager
def local_copy(location: str, max_bytes: int) -> Iterator[Path]:
    """The file itself when it is local, else a temporary copy that goes away afterwards.

    Raises ValueError when it cannot be fetched or is over ``max_bytes``.
    """
    if "://" not in location:
        yield Path(location)
        return
    from fsspec.core import url_to_fs

    with tempfile.TemporaryDirectory(prefix="layerflow-") as folder:
        copy = Path(folder) / f"input{Path(location).suffix}"
        try:
            system, name = url_to_fs(location)
            size = system.size(name)
            if size is not None and size > max_bytes:
                raise ValueError(f"{size} bytes is over the limit of {max_bytes}")
            with system.open(name, "rb") as remote, copy.open("wb") as local:
                shutil.copyfileobj(remote, local, 1 << 20)
        except Exception as error:
            raise ValueError(f"cannot be fetched: {error}") from error
        yield copy
