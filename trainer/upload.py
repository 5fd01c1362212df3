"""Copies of checkpoints, finished stages and exports at a folder or URL, made in the background.

Training waits for an upload only at the end of the run. A folder counts at its destination when its
marker, written last, is there; a copy that fails is reported and does not end the run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MARKER = "_COMPLETE"
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "oss"})
"""Protocols without folders: making one there would ask for, or make, a whole bucket."""


class Uploader:
    """Copies folders below `root` to `destination`, in order, in a thread of its own."""

    def __init__(self, root: Path, destination: str, log: Callable[[str], None]) -> None:
        import fsspec

        self.root, self.log = root, log
        self.files, self.base = fsspec.url_to_fs(destination)
        protocol = self.files.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        self.has_folders = names.isdisjoint(OBJECT_STORES)
        self._waiting: queue.Queue[tuple[Path, str | None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def put(self, folder: Path, *, replaces: str | None = None) -> None:
        """Copy a folder that will not change; then drop those of its siblings at the destination
        whose names begin with `replaces` and that are gone here."""
        self._waiting.put((folder, replaces))

    def close(self) -> None:
        """Wait for everything that was put."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            folder, replaces = item
            try:
                self._copy(folder)
                if replaces is not None:
                    self._drop_old(folder, replaces)
            except Exception as error:
                if not folder.exists():
                    continue  # already replaced by a newer one, which is waiting
                self.log(f"upload of {folder.name} to {self.base} failed: {error}")

    def _copy(self, folder: Path) -> None:
        target = f"{self.base}/{folder.relative_to(self.root).as_posix()}"
        if self.files.exists(target):
            self.files.rm(target, recursive=True)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = f"{target}/{file.relative_to(folder).as_posix()}"
            if self.has_folders:
                self.files.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
            self.files.put_file(str(file), place)
        self.files.pipe_file(f"{target}/{MARKER}", b"")

    def _drop_old(self, folder: Path, prefix: str) -> None:
        parent = f"{self.base}/{folder.relative_to(self.root).parent.as_posix()}"
        for path in self.files.ls(parent, detail=False):
            name = path.rstrip("/").rsplit("/", 1)[-1]
            if name.startswith(prefix) and not (folder.parent / name).exists():
                self.files.rm(path, recursive=True)


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
