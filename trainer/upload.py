"""Copies of checkpoints, finished stages and exports at a folder or URL, made in the background.

Training waits for an upload only at the end of the run. A folder counts at its destination when its
marker, written last, is there. A copy that fails is reported, tried once more at the end, and does
not end the run. `trainer.fetch` goes on from such copies.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARKER = "_COMPLETE"
RECORDS = ("run.json", "metrics.csv", "validation.csv", "trackers.json")
"""Files of the run that are copied with each folder: small, and they change."""
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "oss"})
"""Protocols without folders: making one there would ask for, or make, a whole bucket."""


class Uploader:
    """Copies folders below `root` to `destination`, in order, in a thread of its own."""

    def __init__(self, root: Path, destination: str, log: Callable[[str], None]) -> None:
        self.root, self.log = root, log
        self.files, self.base = open_copies(destination, root)
        protocol = self.files.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        self.has_folders = names.isdisjoint(OBJECT_STORES)
        self._failed: dict[Path, str | None] = {}
        self._waiting: queue.Queue[tuple[Path, str | None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def put(self, folder: Path, *, replaces: str | None = None) -> None:
        """Copy a folder that will not change; then drop those of its siblings at the destination
        whose names begin with `replaces` and that are gone here."""
        self._waiting.put((folder, replaces))

    def close(self) -> None:
        """Wait for everything that was put; say what did not arrive."""
        self._waiting.put(None)
        self._thread.join()
        names = sorted(str(folder.relative_to(self.root)) for folder in self._failed)
        if names:
            self.log(f"upload: not at {self.base}: {', '.join(names)}")

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            self._try(*item)
        for folder, replaces in list(self._failed.items()):
            self._try(folder, replaces)

    def _try(self, folder: Path, replaces: str | None) -> None:
        self._failed.pop(folder, None)
        version = version_of(folder)
        if version is None:
            return  # already replaced by a newer one, which is waiting
        try:
            self._copy(folder)
            if version_of(folder) == version:
                self.files.pipe_file(f"{self._place(folder)}/{MARKER}", b"")
            if replaces is not None:
                self._drop_old(folder, replaces)
        except Exception as error:
            if version_of(folder) != version:
                return  # as above
            self._failed[folder] = replaces
            self.log(f"upload of {folder.name} to {self.base} failed: {error}")

    def _copy(self, folder: Path) -> None:
        for name in RECORDS:
            if (self.root / name).is_file():
                self._put_file(self.root / name, f"{self.base}/{name}")
        target = self._place(folder)
        if self.files.exists(target):
            self.files.rm(target, recursive=True)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self._put_file(file, f"{target}/{file.relative_to(folder).as_posix()}")

    def _place(self, folder: Path) -> str:
        return f"{self.base}/{folder.relative_to(self.root).as_posix()}"

    def _put_file(self, file: Path, place: str) -> None:
        if self.has_folders:
            self.files.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
        self.files.put_file(str(file), place)

    def _drop_old(self, folder: Path, prefix: str) -> None:
        parent = f"{self.base}/{folder.relative_to(self.root).parent.as_posix()}"
        for path in self.files.ls(parent, detail=False):
            name = path.rstrip("/").rsplit("/", 1)[-1]
            if name.startswith(prefix) and not (folder.parent / name).exists():
                self.files.rm(path, recursive=True)


def open_copies(url: str, root: Path) -> tuple[Any, str]:
    """The file system behind a folder or URL, and the place in it. ValueError where nothing can
    be copied: a protocol that is not there, or the run's own folder."""
    import fsspec

    try:
        files, base = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"upload: {url} cannot be used: {error}") from error
    local = files.protocol == "file" or "file" in files.protocol
    if local and Path(base).resolve() == root.resolve():
        raise ValueError(f"upload: {url} is the run's own folder; copies need another one")
    return files, str(base)


def version_of(folder: Path) -> tuple[int, int] | None:
    """Differs when another folder has taken the place; None for no folder."""
    try:
        about = folder.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_mtime_ns


@contextmanager
def uploading(
    root: Path, destination: str | None, log: Callable[[str], None]
) -> Iterator[Uploader | None]:
    """An uploader for the block, or None without a destination."""
    if destination is None:
        yield None
        return
    uploader = Uploader(root, destination, log)
    try:
        yield uploader
    finally:
        uploader.close()
