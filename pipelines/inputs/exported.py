"""What ``layerflow export`` wrote: tar shards and folders of finished clips, read as untrusted.

Of a tar file only plain entries of the names that a clip's files have are taken, one after the
other, each within the limits of its clip; nothing is unpacked to a disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from layerflow.documents import MAX_BYTES, read_json
from layerflow.locations import check_inside
from layerflow.regular import open_regular, read_regular
from pipelines.export.containers import BLOCK, HEAD, METADATA, PIECES
from pipelines.export.sample import CLIP_ID, MAX_JSON_BYTES, MAX_SAMPLE_BYTES, NAME
from pipelines.inputs.importers import Importer, Listing

PIECE = re.compile(r"(?:video|still)-\d{6,}\.tar|(?:videos|stills)/\d{5,}")
MAX_FILES = 256  # of one clip
Files = dict[str | None, bytes]


@dataclass(frozen=True)
class ExportPart:
    """One tar shard or folder. uri: its place in the export; identity: changes when it does;
    sha256: of the shard, as the export says."""

    path: Path
    uri: str
    identity: str
    sha256: str | None


class Export(Importer):
    """The folder of ``layerflow export``, of either format."""

    name = "export"

    def recognises(self, root: Path) -> bool:
        return (root / HEAD).is_file() and (root / PIECES).is_file()

    def list(self, root: Path) -> Listing:
        read_json(root / HEAD, {"export": int, "format": str})
        return Listing(exported=list(_parts(root)))


EXPORT = Export()


def _parts(root: Path) -> Iterator[ExportPart]:
    """Raises ValueError for a piece that is missing, or has a name that none has."""
    told = read_regular(check_inside(root / PIECES, root), MAX_BYTES)
    if len(told) > MAX_BYTES:
        raise ValueError(f"{PIECES} is larger than {MAX_BYTES} bytes")
    for line in told.splitlines():
        try:
            piece = json.loads(line)
            name, sha256 = str(piece["name"]), piece["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{PIECES} cannot be read: {str(error)[:200]}") from error
        if not PIECE.fullmatch(name):
            raise ValueError(f"{PIECES}: {name[:80]!r} is the name of no piece")
        path = check_inside(root / name, root)
        if not (path.is_file() if name.endswith(".tar") else path.is_dir()):
            raise ValueError(f"{name} is missing; copy the whole export")
        identity = hashlib.sha256(line).hexdigest() + f":{path.stat().st_size}"
        yield ExportPart(path, name, identity, sha256 if isinstance(sha256, str) else None)


def samples_of(part: ExportPart) -> Iterator[tuple[str, Files]]:
    """The clips of a piece in order: id, and files by the names of their cells (None: its JSON).

    Raises ValueError, at the clip where it is met, for a piece that is damaged or holds anything
    else, and OSError when it cannot be read.
    """
    yield from _of_folder(part) if part.path.is_dir() else _of_shard(part)


def _of_shard(part: ExportPart) -> Iterator[tuple[str, Files]]:
    with os.fdopen(open_regular(part.path), "rb") as file:
        if part.sha256 is not None:
            if hashlib.file_digest(file, "sha256").hexdigest() != part.sha256:
                raise ValueError(f"{part.uri} is not what was exported: its sha256 is another")
            file.seek(0)
        id, files, size = "", Files(), 0
        for name, length in _entries(file):
            match = NAME.fullmatch(name)
            if match is None:
                raise ValueError(f"{name[:80]!r} is no file of a clip")
            if match["id"] != id:
                if files:
                    yield id, files
                id, files, size = match["id"], Files(), 0
            size += length
            _check(name, match["cell"], files, length, size)
            files[match["cell"]] = _exactly(file, length)
            _exactly(file, -length % BLOCK)
        if files:
            yield id, files


def _entries(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Name and size of each entry of a tar file; the caller reads its content. Raises ValueError
    for anything but plain files: links, devices, sparse files, and heads that extend others."""
    while (head := _exactly(file, BLOCK)) != bytes(BLOCK):
        try:
            entry = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise ValueError(f"it is no tar file, or damaged: {error}") from error
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.size < 0:
            raise ValueError(f"{entry.name[:80]!r} is no plain file")
        yield entry.name, entry.size


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it is cut off")
    return data


def _check(name: str, cell: str | None, files: Files, length: int, size: int) -> None:
    """Raises ValueError for a file that a clip has already, or that is too large for it."""
    if cell in files:
        raise ValueError(f"{name} is there twice")
    if size > MAX_SAMPLE_BYTES or len(files) >= MAX_FILES:
        raise ValueError(f"{name}: its clip is larger than a clip may be")
    if cell is None and length > MAX_JSON_BYTES:
        raise ValueError(f"{name} is larger than {MAX_JSON_BYTES} bytes")


def _of_folder(part: ExportPart) -> Iterator[tuple[str, Files]]:
    found: dict[str, list[str]] = {}
    for name in sorted(entry.name for entry in os.scandir(part.path)):
        if match := NAME.fullmatch(name):
            found.setdefault(match["id"], []).append(name)
    for id in _order(part):
        if id not in found:
            raise ValueError(f"{METADATA} lists {id}, of which there is no file")
        files, size = Files(), 0
        for name in found.pop(id):
            path = check_inside(part.path / name, part.path)
            length = path.stat().st_size
            size += length
            cell = NAME.fullmatch(name)["cell"]  # type: ignore[index]
            _check(name, cell, files, length, size)
            files[cell] = read_regular(path, length)[:length]
        yield id, files
    if found:
        raise ValueError(f"{METADATA} does not list {min(found)}")


def _order(part: ExportPart) -> list[str]:
    data = read_regular(check_inside(part.path / METADATA, part.path), MAX_BYTES)
    try:
        ids = [json.loads(line)["id"] for line in data.splitlines()]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{METADATA} cannot be read: {str(error)[:200]}") from error
    if len(data) > MAX_BYTES or not all(isinstance(i, str) and CLIP_ID.fullmatch(i) for i in ids):
        raise ValueError(f"{METADATA} is larger than {MAX_BYTES} bytes, or names no clips")
    return ids
