"""Files and folders that appear whole or not at all: the one place that renames and syncs.

What is written lies beside its place under a hidden name, is synced, and takes the place in one
step. An error, such as a full disk, leaves what was there before and nothing else. A process that
is killed leaves what was there before, and the hidden one: ``new_folder`` removes its own, and
``sweep`` those of a whole folder.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Errors that another attempt on the same disk will meet again."""
DRAINED = 8 << 20  # bytes that are written before the disk is told to take them
OWNER = "layerflow.json"  # in a temporary folder: the process that made it


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Where to write a file that replaces ``path`` when the block ends, unless by an exception.

    Its folder is made if there is none. Every call gives another name, so that writers do not meet.
    OSError when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        publish_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file's content."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Replace a file's content, as UTF-8 with line ends as they are given."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Replace a file's content by ``json_text``."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """Indented JSON, keys sorted, as a file has it."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def building(path: str | Path) -> Path:
    """Where ``new_folder`` builds the folder ``path``."""
    return Path(path).with_name(f".{Path(path).name}.tmp")


@contextmanager
def new_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which is ``path`` when the block ends, unless by an exception.

    For one writer of a ``path`` at a time. Errors as of ``publish_folder``.
    """
    written = building(path)
    remove(written)
    written.mkdir(parents=True)
    try:
        yield written
        publish_folder(written, path, replace=replace)
    finally:
        remove(written)


def publish_file(written: Path, path: Path) -> None:
    """Move a finished file to its place, over what is there."""
    sync(written)
    os.replace(written, path)
    sync(path.parent)


def publish_folder(
    written: Path, path: str | Path, *, replace: bool = False, synced: bool = True
) -> None:
    """Move a finished folder to its place, which is absent or an empty folder (else OSError).

    replace: whatever is there goes. Where the file system cannot exchange two names, a process
    that is killed at this moment leaves what was there as ``.NAME.old``. synced: False for what is
    compared with its sums before it is used, and made again: a power cut may leave it damaged.
    """
    path = Path(path)
    for part in [*written.rglob("*"), written] if synced else []:
        if not part.is_symlink():
            sync(part)
    if not (replace and path.exists()):
        os.rename(written, path)
    elif not _exchange(written, path):
        old = path.with_name(f".{path.name}.old")
        remove(old)
        os.rename(path, old)
        os.rename(written, path)
        os.rename(old, written)
    if synced:
        sync(path.parent)
    remove(written)  # what was there before, now under this name


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written, in the folder and in those below it."""
    for left in [*folder.rglob(".*.tmp")]:
        remove(left)


def sync(path: Path) -> None:
    """Bring to the disk a file's bytes, or the names in a folder where a folder can be synced."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if not path.is_dir() or error.errno in FULL:
            raise
    finally:
        os.close(opened)


class Draining(io.BufferedWriter):
    """A new file whose bytes go to the disk while it is written, so that ``sync`` waits for few.

    Linux alone can be told so; elsewhere it is a file as any other.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self._told = self._written = 0

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._written += count
        if self._written - self._told >= DRAINED:
            _start_writing(self.fileno(), self._told, self._written - self._told)
            self._told = self._written
        return count


def _start_writing(opened: int, start: int, count: int) -> None:
    """Begin to bring a part of a file to the disk; nobody waits, and errors are told by a sync."""
    begin = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if begin is not None:
        begin(opened, ctypes.c_int64(start), ctypes.c_int64(count), 2)  # SYNC_FILE_RANGE_WRITE


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system cannot (it needs Linux)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    arguments = (here, os.fsencode(one), here, os.fsencode(other), exchange)
    return rename is not None and rename(*arguments) == 0


def own(folder: Path) -> None:
    """Mark a folder as of this process."""
    (folder / OWNER).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))


def is_left_behind(folder: Path) -> bool:
    """Whether the process that marked a folder was one of this machine and is gone.

    False for a folder without a mark, and for a link.
    """
    if folder.is_symlink():
        return False
    try:
        owner = json.loads((folder / OWNER).read_text())
        if owner["host"] == socket.gethostname() and int(owner["pid"]) > 0:
            os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, ValueError, KeyError, TypeError):
        pass
    return False
