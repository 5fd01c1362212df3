"""Stills and videos in a bucket: listed by their names alone, fetched when they are loaded."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from layerflow.locations import clean_uri, is_inside, suffix_of
from layerflow.media.cells import MediaError
from layerflow.media.video import Limits
from pipelines.inputs.listing import (
    STILL_SUFFIXES,
    VIDEO_SUFFIXES,
    find_remote,
    is_local_url,
    local_copy,
)
from pipelines.inputs.prompts import MAX_SIDECAR_BYTES, Said, sidecar, sidecar_names

if TYPE_CHECKING:
    from pipelines.inputs.sources import PasteSource

T = TypeVar("T")


@dataclass(frozen=True)
class Bucket:
    """A remote folder, or one file.

    root: URL of the folder. sizes: bytes of every file, by its path below the folder.
    """

    root: str
    sizes: Mapping[Path, int]

    @property
    def listed(self) -> list[tuple[Path, PurePosixPath]]:
        """Media files in order, as ``layouts.group_listed`` takes them."""
        media = STILL_SUFFIXES | VIDEO_SUFFIXES
        paths = sorted(path for path in self.sizes if path.suffix.lower() in media)
        return [(path, PurePosixPath(path.as_posix())) for path in paths]

    def url(self, below: Path | str) -> str:
        return f"{self.root}/{Path(below).as_posix()}"

    def captions(self, paths: Sequence[Path]) -> tuple[str, ...]:
        """URLs of the captions beside some files."""
        beside = (path.with_name(name) for path in paths for name in sidecar_names(path.name))
        return tuple(dict.fromkeys(self.url(path) for path in beside if path in self.sizes))

    def reading(self, read: Callable[[Path], T | None]) -> Callable[[Path], T | None]:
        """Reads a still, which is fetched for it; gives None for what cannot be read."""

        def fetched(path: Path) -> T | None:
            try:
                with local_copy(self.url(path), Limits().max_bytes) as copy:
                    return read(copy)
            except ValueError:
                return None

        return fetched


def list_bucket(url: str) -> Bucket:
    """What lies at a URL that fsspec opens, without hidden files.

    Raises ValueError when it cannot be listed, or is empty.
    """
    system, root, found = find_remote(url)
    if root in found:  # a file, which has neighbours that are nobody's business
        folder, _, name = root.rpartition("/")
        return Bucket(system.unstrip_protocol(folder), {Path(name): _size(found[root])})
    sizes = {}
    local = is_local_url(system.unstrip_protocol(root))
    for name, info in found.items():
        below = PurePosixPath(name).relative_to(PurePosixPath(root))
        if local and not is_inside(Path(name), Path(root)):
            continue
        if not any(part.startswith(".") for part in below.parts):
            sizes[Path(below)] = _size(info)
    if not sizes:
        raise ValueError(f"{clean_uri(url)}: no such file or folder")
    if Path("state.json") in sizes:
        raise ValueError(
            f"{clean_uri(url)}: a corpus in a bucket must be copied to a local folder first"
        )
    return Bucket(system.unstrip_protocol(root).rstrip("/"), sizes)


def _size(info: Mapping[str, object]) -> int:
    return int(str(info.get("size") or 0))


class Fetcher:
    """Local copies of remote sources, until ``clear``. Local sources stay what they are."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._held: dict[str, PasteSource | str] = {}

    def local(self, source: PasteSource) -> PasteSource:
        """The source with local files. MediaError, then and later, when one cannot be fetched."""
        if not any("://" in path for role, path in source.files if role != "corpus"):
            return source
        if source.stamp not in self._held:
            try:
                self._held[source.stamp] = self._fetched(source)
            except (ValueError, OSError) as error:
                self._held[source.stamp] = str(error)
        held = self._held[source.stamp]
        if isinstance(held, str):
            raise MediaError(held)
        return held

    def _fetched(self, source: PasteSource) -> PasteSource:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="layerflow-")
        name = hashlib.sha256(source.stamp.encode()).hexdigest()[:16]
        root = Path(self._folder.name) / name
        files = []
        for place, (role, url) in enumerate(source.files):
            target = root / f"{role}-{place}" / _local_name(url)
            _fetch(url, target, Limits().max_bytes)
            files.append((role, str(target)))
            for caption in source.beside:
                _fetch_sidecar(caption, url, target)
        return replace(source, files=tuple(files), beside=())

    def clear(self) -> None:
        """Delete all copies."""
        if self._folder is not None:
            self._folder.cleanup()
        self._folder, self._held = None, {}


def _local_name(url: str) -> str:
    return f"{PurePosixPath(url).stem[:80]}{suffix_of(url)}"


def remote_sidecar(location: str, beside: Sequence[str]) -> Said:
    """What the sidecars of a remote file say. Raises ValueError as ``sidecar`` does."""
    if not beside:
        return {}
    with tempfile.TemporaryDirectory(prefix="layerflow-") as folder:
        target = Path(folder) / _local_name(location)
        for caption in beside:
            _fetch_sidecar(caption, location, target)
        return sidecar(target)


def _fetch_sidecar(caption: str, url: str, target: Path) -> None:
    """Lay a remote sidecar beside the local copy ``target`` of ``url``, if it is one of it."""
    place, stem = caption.rpartition("/")[0], PurePosixPath(url).stem
    if place == url.rpartition("/")[0] and PurePosixPath(caption).name.startswith(f"{stem}."):
        ending = PurePosixPath(caption).name[len(stem) :]
        _fetch(caption, target.with_name(target.stem + ending), MAX_SIDECAR_BYTES)


def _fetch(url: str, target: Path, limit: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with local_copy(url, limit) as copy:
        shutil.move(copy, target)
