"""A folder on this machine or in an object store: files that appear whole, read whole or by range.

No rename, no lock and no listing is needed to read. What several machines may write at a time is
written by ``put_new``, of which one wins.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from layerflow.files import publish_file, remove, replacing, sync, write_bytes
from layerflow.locations import clean_uri, without_secrets

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss"})
"""Schemes of URLs below which corpora may lie: those with an atomic put."""
STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "mtime")
"""What clients of object stores say of a file that changes with it."""


def in_object_store(where: str | Path) -> bool:
    """Whether this names a folder of an object store, by its scheme."""
    return isinstance(where, str) and where.partition("://")[0].lower() in OBJECT_STORES


class Store:
    """One folder, by a local path or a URL. Names are relative to it, with ``/``."""

    def __init__(self, where: str | Path) -> None:
        self.where = where.rstrip("/") if isinstance(where, str) else where
        self.local = None if in_object_store(where) else Path(where)

    def __str__(self) -> str:
        return clean_uri(str(self.where))

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where, "local": self.local}

    def below(self, name: str) -> Store:
        """The folder ``name`` in this one."""
        return Store(self.local / name if self.local is not None else f"{self.where}/{name}")

    def location(self, name: str) -> str:
        """A name as a path or URL, for ``read_location``."""
        return str(self.local / name) if self.local is not None else f"{self.where}/{name}"

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        with self._explained("cannot be opened"):
            system, root = url_to_fs(str(self.where), use_listings_cache=False)
            return system, str(root).rstrip("/")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Errors of clients of object stores, which are of many kinds, as OSError with the URL."""
        try:
            yield
        except FileExistsError:
            raise
        except ImportError as error:
            raise ValueError(f"{self} {what}: {error}") from error
        except Exception as error:
            if isinstance(error, FileNotFoundError) and what == "cannot be read":
                raise
            text = f"{self} {what}: {type(error).__name__}: {str(error)[:300]}"
            raise OSError(without_secrets(text)) from error

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes of a file, or of a part of it. Raises FileNotFoundError, or another OSError."""
        if self.local is not None:
            with (self.local / name).open("rb") as file:
                file.seek(start or 0)
                return file.read(-1 if end is None else max(0, end - (start or 0)))
        system, root = self._remote
        with self._explained("cannot be read"):
            return bytes(system.cat_file(f"{root}/{name}", start=start, end=end))

    def put(self, name: str, data: bytes) -> None:
        """Write a file, over what is there."""
        if self.local is not None:
            write_bytes(self.local / name, data)
            return
        system, root = self._remote
        with self._explained("cannot be written"):
            system.pipe_file(f"{root}/{name}", data)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one of this name, in one step; whether it was written."""
        if self.local is not None:
            return _link_new(self.local / name, data)
        system, root = self._remote
        try:
            with self._explained("cannot be written"):
                system.pipe_file(f"{root}/{name}", data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if "PreconditionFailed" in str(error) or "412" in str(error):
                return False
            raise
        return True

    def put_file(self, name: str, source: Path) -> None:
        """Bring a finished local file to its place, over what is there. ``source`` goes."""
        if self.local is not None:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            publish_file(source, target)
            return
        system, root = self._remote
        with self._explained("cannot be written"):
            system.put_file(str(source), f"{root}/{name}")
        source.unlink()

    def get_file(self, name: str, target: Path) -> None:
        """Copy a file to a local path."""
        if self.local is not None:
            shutil.copyfile(self.local / name, target)
            return
        system, root = self._remote
        with self._explained("cannot be read"):
            system.get_file(f"{root}/{name}", str(target))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A place for a file that is written before ``put_file``: on the same disk if it can be."""
        if self.local is not None:
            self.local.mkdir(parents=True, exist_ok=True)
            path = self.local / f".{uuid.uuid4().hex[:12]}.tmp"
        else:
            import tempfile

            path = Path(tempfile.gettempdir()) / f"layerflow-{uuid.uuid4().hex[:12]}.tmp"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        if self.local is not None:
            return (self.local / name).stat().st_size
        system, root = self._remote
        with self._explained("cannot be read"):
            return int(system.size(f"{root}/{name}"))

    def names(self, below: str = "") -> dict[str, int]:
        """All files below a folder, by one listing: name, from here -> bytes."""
        if self.local is not None:
            base = self.local / below
            files = [path for path in base.rglob("*") if path.is_file()] if base.is_dir() else []
            return {path.relative_to(self.local).as_posix(): path.stat().st_size for path in files}
        return {name: int(about["size"]) for name, about in self._listed(below).items()}

    def stamps(self) -> dict[str, str]:
        """All files of an object store's folder: name -> what changes when the file does."""
        return {
            name: " ".join(str(about[key]) for key in ("size", *STAMPS) if key in about)
            for name, about in self._listed("").items()
        }

    def folders(self) -> list[str]:
        """The folders in an object store's folder, by one listing that goes no deeper."""
        system, root = self._remote
        with self._explained("cannot be listed"):
            try:
                found = system.ls(root, detail=True)
            except FileNotFoundError:
                return []
        return [
            str(about["name"]).rstrip("/").rpartition("/")[2]
            for about in found
            if about["type"] == "directory"
        ]

    def _listed(self, below: str) -> dict[str, dict[str, Any]]:
        """All files of an object store below a folder: name, from here -> what its client says."""
        system, root = self._remote
        with self._explained("cannot be listed"):
            try:
                found = system.find(f"{root}/{below}".rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
        return {name[len(root) + 1 :]: about for name, about in found.items()}

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder, if it is there."""
        if self.local is not None:
            remove(self.local / name)
            return
        system, root = self._remote
        there = self.names(name)
        with self._explained("cannot be removed"):
            if there:
                system.rm([f"{root}/{each}" for each in there])


def read_location(location: str) -> bytes:
    """A file that ``Store.location`` named."""
    folder, _, name = location.rpartition("/")
    return Store(folder).read(name)


def _link_new(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            with replacing(path) as copy:
                shutil.copyfile(temporary, copy)
        return True
    finally:
        temporary.unlink(missing_ok=True)
