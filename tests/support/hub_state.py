"""What the double of the Hub holds: repositories with branches, tags and commits, blobs, faults."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.xet_chunks import chunks


@dataclass
class File:
    """A file of a repository; ``lfs`` is the sha256 of a blob."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        return self.sha256 if self.lfs else self.git

    @property
    def git(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Fault:
    """What happens to the next request that matches. kind: a status code, or ``reset`` (the
    connection dies in mid-body), ``corrupt`` (one byte is stored wrong), ``hang``, ``none``."""

    method: str
    path: str
    kind: str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Commit:
    files: dict[str, File]
    parent: str | None = None
    title: str = "initial commit"


@dataclass
class Repo:
    """Commits by their ids; a branch or a tag is the id of one."""

    private: bool
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    made: int = 0

    def __post_init__(self) -> None:
        self.put({})

    def put(self, files: dict[str, File], branch: str = "main", title: str = "", *,
            root: bool = False) -> str:  # fmt: skip
        """A new commit on a branch; root: without the history before it."""
        self.made += 1
        oid = f"{self.made:040x}"
        parent = None if root else self.branches.get(branch)
        self.commits[oid] = Commit(files, parent, title)
        self.branches[branch] = oid
        return oid

    def at(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit's id."""
        found = self.branches.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)

    def history(self, revision: str) -> list[str]:
        """Commits from the newest to the oldest."""
        found, oid = [], self.at(revision)
        while oid is not None:
            found.append(oid)
            oid = self.commits[oid].parent
        return found

    def reachable(self) -> Iterator[tuple[str, File]]:
        """Every file in every commit that a branch or a tag leads to."""
        for name in (*self.branches, *self.tags):
            for oid in self.history(name):
                yield from self.commits[oid].files.items()

    @property
    def head(self) -> str:
        return self.branches["main"]


class Hub:
    """State of the double: repositories, blobs, faults, and what was asked for."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.calls: list[str] = []
        self.uploads: Counter[str] = Counter()  # complete uploads by sha256
        self.chunks: set[bytes] = set()  # of all blobs that were ever uploaded
        self.whole = 0  # bytes of blobs that clients sent
        self.new = 0  # of these, bytes in chunks that were not there: what Xet sends
        self.received = 0  # bytes of the bodies of all requests
        self.served = 0  # bytes of files that were sent to clients
        self.rotten: set[str] = set()  # files whose checksum the tree reports wrong
        self.block = threading.Event()
        self.blocked = threading.Event()
        self.lock = threading.RLock()
        self.url = ""

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def store(self, oid: str, data: bytes) -> None:
        self.blobs[oid] = data
        self.uploads[oid] += 1
        self.whole += len(data)
        for chunk in chunks(data):
            name = hashlib.sha256(chunk).digest()
            if name not in self.chunks:
                self.chunks.add(name)
                self.new += len(chunk)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, File]:
        repo = self.repos[repo_id]
        return repo.commits[repo.at(revision) or ""].files
