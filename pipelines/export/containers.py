"""What the files of clips lie in: tar shards of WebDataset, or folders that ``datasets`` reads.

A piece is one shard or one folder; it is there whole or not at all. Equal clips give equal bytes.
"""

from __future__ import annotations

import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from layerflow.clip import LAYERS, PROMPTED
from layerflow.corpus.writer import Hashed
from layerflow.files import new_folder, replacing
from pipelines.export.sample import files_of

SHARD_BYTES = 512 << 20
FOLDER_CLIPS = 100  # of at most 1,000 files, unless clips have many objects
BLOCK = tarfile.BLOCKSIZE
METADATA = "metadata.jsonl"
HEAD, PIECES = "export.json", "pieces.jsonl"
"""Beside the pieces: what the export is, and a line for each piece in order."""


class Piece(ABC):
    """Clips are added to it until it is full."""

    clips = 0
    bytes = 0
    sha256: str | None = None

    @abstractmethod
    def put(self, row: Mapping[str, Any]) -> None: ...

    @property
    @abstractmethod
    def full(self) -> bool: ...


class Shard(Piece):
    """A tar file in the oldest common form (ustar): no time, no owner, no long names."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def put(self, row: Mapping[str, Any]) -> None:
        for name, data in files_of(row):
            head = tarfile.TarInfo(name)
            head.size = len(data)
            self._write(head.tobuf(tarfile.USTAR_FORMAT), data, b"\0" * (-len(data) % BLOCK))
        self.clips += 1

    def _write(self, *parts: bytes) -> None:
        for part in parts:
            self._file.write(part)
            self.bytes += len(part)

    @property
    def full(self) -> bool:
        return self.bytes >= SHARD_BYTES

    def end(self) -> None:
        self._write(bytes(2 * BLOCK))


class Folder(Piece):
    """A folder of files, and a table of them that ``videofolder`` and ``imagefolder`` read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: list[str] = []

    def put(self, row: Mapping[str, Any]) -> None:
        names = {}
        for name, data in files_of(row):
            (self._path / name).write_bytes(data)
            names[name.split(".")[1]] = name
            self.bytes += len(data)
        self._told.append(json.dumps(_line(row, names)) + "\n")
        self.clips += 1

    @property
    def full(self) -> bool:
        return self.clips >= FOLDER_CLIPS

    def end(self) -> None:
        text = "".join(self._told)
        (self._path / METADATA).write_text(text)
        self.bytes += len(text)


def _line(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """What a table says of a clip: no value is null, since ``datasets`` takes the type of a column
    from the first rows."""
    source = row["origin"]
    numbers = ("num_frames", "height", "width", "fps")
    return {
        "id": row["id"],
        "kind": row["kind"],
        **{f"{layer}_file_name": names[layer] for layer in LAYERS},
        **{f"{layer}_prompt": row[f"{layer}_prompt"] for layer in PROMPTED},
        **{name: row[name] for name in numbers},
        "source": source["uri"],
        "licence": source["licence"] or "",
        "attribution": source["attribution"] or "",
    }


def webdataset_name(still: bool, number: int) -> str:
    return f"{'still' if still else 'video'}-{number:06d}.tar"


def folder_name(still: bool, number: int) -> str:
    return f"{'stills' if still else 'videos'}/{number:05d}"


@contextmanager
def open_shard(path: Path) -> Iterator[Shard]:
    """A tar file to fill, which is at ``path`` when the block ends, unless by an exception."""
    with replacing(path) as temporary, Hashed(temporary.open("wb")) as file:
        shard = Shard(file)  # type: ignore[arg-type]
        yield shard
        shard.end()
        shard.sha256 = file.digest.hexdigest()


@contextmanager
def open_folder(path: Path) -> Iterator[Folder]:
    """A folder to fill, which is at ``path`` when the block ends, unless by an exception."""
    with new_folder(path, replace=True) as temporary:
        folder = Folder(temporary)
        yield folder
        folder.end()


FORMATS: dict[str, Any] = {
    "webdataset": (webdataset_name, open_shard),
    "folder": (folder_name, open_folder),
}
"""``--format`` -> the name of a piece (of stills?, number), and how one is made."""
