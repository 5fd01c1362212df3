"""A folder of this machine that holds parts of remote files, up to a number of bytes.

``LAYERFLOW_CACHE`` names it (by default in the user's cache folder), ``LAYERFLOW_CACHE_GB`` says
how much it may hold (20). All processes of a machine share it. A full one stays as it is: an
epoch visits every row once, so that dropping the oldest part for the newest would drop each just
before it comes again. Only parts of other stores make room.
"""

from __future__ import annotations

import hashlib
import os
import threading
from functools import cache
from pathlib import Path

from layerflow.files import write_bytes

FOLDER, LIMIT = "LAYERFLOW_CACHE", "LAYERFLOW_CACHE_GB"
RECOUNT = 16  # parts that one process stores before it counts again what others stored


class RangeCache:
    """Parts of files, by the name of their store and a key. Safe for threads and processes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._lock = threading.Lock()
        self._stored, self._held = 0, -1
        self._used: set[str] = set()

    def use(self, store: str) -> None:
        """The parts of this store stay as long as this process lives."""
        self._used.add(store)

    def get(self, store: str, key: str, size: int) -> bytes | None:
        """A part that was stored; None where it is not, or is no longer whole."""
        try:
            data = self._path(store, key).read_bytes()
        except OSError:
            return None
        return data if len(data) == size else None

    def put(self, store: str, key: str, data: bytes) -> bool:
        """Store a part if there is room, or can be made; whether it was stored."""
        with self._lock:
            if not self._room(len(data)):
                return False
            self._held += len(data)
            self._stored += 1
        path = self._path(store, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
        except OSError:  # a full disk costs the cache, not the run
            self._held = -1
            return False
        return True

    def _path(self, store: str, key: str) -> Path:
        return self.folder / store / hashlib.sha256(key.encode()).hexdigest()[:32]

    def _room(self, size: int) -> bool:
        if self._held < 0 or self._stored % RECOUNT == 0:
            self._held = sum(self._sizes().values())
        if self._held + size > self.limit:
            self._drop_others(self._held + size - self.limit)
            self._held = sum(self._sizes().values())
        return self._held + size <= self.limit

    def _sizes(self) -> dict[Path, int]:
        found = {}
        for path in self.folder.rglob("*"):
            try:
                if path.is_file():
                    found[path] = path.stat().st_size
            except OSError:  # another process has just dropped it
                continue
        return found

    def _drop_others(self, wanted: int) -> None:
        for path, size in self._sizes().items():
            if wanted <= 0:
                return
            if path.parent.name not in self._used:
                path.unlink(missing_ok=True)
                wanted -= size


@cache
def shared_cache() -> RangeCache:
    """The cache of this machine. ValueError for a limit that is no number."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get(FOLDER) or Path(home) / "layerflow" / "ranges")
    said = os.environ.get(LIMIT) or "20"
    try:
        return RangeCache(folder, int(float(said) * 1e9))
    except ValueError as error:
        raise ValueError(f"{LIMIT} must be a number of gigabytes, not {said!r}") from error
