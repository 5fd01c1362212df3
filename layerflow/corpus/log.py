"""The versions of a corpus: a small log that says which shards, in which order, are the corpus.

    CORPUS/versions/000001.json, 000002.json, ...

Shards never change once they are written. A version is one file, written by one put-if-absent, and
a corpus is at its newest one; so whoever reads sees one version or another, never a mixture, and of
two writers one wins and the other is told. A corpus without a log is at version 1.

A log is a stranger's file like the others: read under limits, its names lead nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from layerflow.corpus.store import Store, in_object_store
from layerflow.documents import MAX_BYTES, parse_json
from layerflow.regular import read_regular

VERSIONS = "versions"
REJECTED = "rejected"
OVERLAY = "overlay"
FORMAT_VERSION = 1
SHA256 = re.compile(r"[0-9a-f]{64}")
ADDRESS = re.compile(r"(?P<path>.+)@v(?P<number>[1-9][0-9]{0,5})", re.DOTALL)


@dataclass(frozen=True)
class Shard:
    """A file of a corpus with its rows and bytes. What is None is not known: there is no log."""

    file: str
    rows: int | None = None
    bytes: int | None = None
    sha256: str | None = None

    def plain(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "rows": self.rows,
            "bytes": self.bytes,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class Version:
    """One version: its shards and those of its rejected table, in order.

    step: what made it (a job's kind, ``filter``, ``compact``, ...). info: what ``corpus.json`` says
    then. done: files in ``versions/`` that list the units of all jobs so far, see ``engine.jobs``.
    overlay: small tables in ``overlay/`` with corrected values, a later one wins; tombstones: files
    in ``versions/`` that say what was removed; see ``corpus.changes``.
    more: keys that this code does not know, which every later version keeps.
    """

    number: int
    step: str
    shards: tuple[Shard, ...]
    rejected: tuple[Shard, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    done: tuple[str, ...] = ()
    overlay: tuple[Shard, ...] = ()
    tombstones: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(shard.rows or 0 for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes or 0 for shard in self.shards)

    def plain(self) -> dict[str, Any]:
        return {
            **self.more,
            "format_version": FORMAT_VERSION,
            "version": self.number,
            "step": self.step,
            "rows": self.rows,
            "bytes": self.bytes,
            "shards": [shard.plain() for shard in self.shards],
            "rejected": [shard.plain() for shard in self.rejected],
            "info": dict(self.info),
            "done": list(self.done),
            "overlay": [shard.plain() for shard in self.overlay],
            "tombstones": list(self.tombstones),
        }

    def next(self, step: str, **changes: Any) -> Version:
        """The version after this one, equal to it in all but ``changes``."""
        return replace(self, number=self.number + 1, step=step, **changes)


KNOWN = frozenset(Version(1, "", ()).plain())


def split_address(where: str | Path) -> tuple[str | Path, int | None]:
    """``CORPUS@v3`` -> the corpus and the version; a path that is there as it stands has none."""
    match = ADDRESS.fullmatch(str(where))
    if match is None or (not in_object_store(where) and Path(where).exists()):
        return where, None
    path = match["path"]
    return path if isinstance(where, str) else Path(path), int(match["number"])


def at_version(where: str | Path, version: int | None) -> str:
    """The address of a corpus at a version; None: as it stands."""
    return str(where) if version is None else f"{where}@v{version}"


def file_name(number: int) -> str:
    return f"{VERSIONS}/{number:06d}.json"


def numbers(store: Store) -> list[int]:
    """The numbers of the versions that are there, in order; one listing."""
    names = (Path(name).name for name in store.names(VERSIONS))
    return sorted(int(name[:6]) for name in names if re.fullmatch(r"\d{6}\.json", name))


def newest(store: Store) -> Version | None:
    """The version that a corpus is at; None without a log. Errors as of ``read``."""
    there = numbers(store)
    return read(store, there[-1]) if there else None


def read(store: Store, number: int) -> Version:
    """One version. Raises ValueError when it is not there or damaged."""
    name = file_name(number)
    where = store.location(name)
    try:
        found = parse_json(_bytes(store, name), where)
    except FileNotFoundError as error:
        there = numbers(store) or [1]
        text = f"{store}: there is no version {number}; there are {there[0]} to {there[-1]}"
        raise ValueError(text) from error
    try:
        version = Version(
            number=found["version"],
            step=str(found["step"])[:40],
            shards=_shards(found["shards"]),
            rejected=_shards(found["rejected"]),
            info=dict(found["info"]),
            done=tuple(_plain_name(each) for each in found["done"]),
            overlay=_shards(found.get("overlay", ())),
            tombstones=tuple(_plain_name(each) for each in found.get("tombstones", ())),
            more={key: value for key, value in found.items() if key not in KNOWN},
        )
        if version.number != number or not version.shards:
            raise ValueError("it names another version, or no shard")
        if found["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"its format is {str(found['format_version'])[:20]}: a newer toolkit's"
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} cannot be read: {repr(error)[:400]}") from error
    return version


def _bytes(store: Store, name: str) -> bytes:
    if store.local is not None:
        return read_regular(store.local / name, MAX_BYTES)
    return store.read(name, 0, MAX_BYTES + 1)


def _shards(entries: Iterable[Any]) -> tuple[Shard, ...]:
    found = tuple(
        Shard(_plain_name(e["file"]), e["rows"], e["bytes"], e["sha256"]) for e in entries
    )
    for shard in found:
        counts = (shard.rows, shard.bytes)
        if any(type(n) is not int or n < 0 for n in counts) or not SHA256.fullmatch(
            str(shard.sha256)
        ):
            raise ValueError(f"{shard.file}: rows, bytes or sha256")
    return found


def _plain_name(name: Any) -> str:
    if not isinstance(name, str) or Path(name).name != name or name.startswith("."):
        raise ValueError(f"{str(name)[:80]!r} is no name of a file")
    return name


def files_of(version: Version) -> dict[str, Shard]:
    """Every table file that a version names, by its place in the corpus folder."""
    tables = {"": version.shards, REJECTED: version.rejected, OVERLAY: version.overlay}
    return {
        f"{folder}/{shard.file}" if folder else shard.file: shard
        for folder, shards in tables.items()
        for shard in shards
    }


def named_files(store: Store, below: str = "") -> set[str]:
    """The shards of all versions, or of all their tables in a folder: ``REJECTED``, ``OVERLAY``."""
    places = {place for number in numbers(store) for place in files_of(read(store, number))}
    return {Path(place).name for place in places if Path(place).parent == Path(below)}


def is_purged(store: Store, version: Version) -> bool:
    """Whether shards of an older version are gone, with rows that a later version removed."""
    there = newest(store)
    if there is None or not there.tombstones or there.number <= version.number:
        return False
    held = store.names()
    return any(place not in held for place in files_of(version))


def refuse_purged(store: Store, version: Version) -> None:
    """Raises ValueError for a version that ``is_purged``."""
    if is_purged(store, version):
        raise ValueError(
            f"{store}: version {version.number} is gone: it held rows that were removed from the "
            f"corpus and purged; read the newest one ({numbers(store)[-1]})"
        )


def commit(store: Store, version: Version) -> bool:
    """Add a version; False when there is one of this number already."""
    text = json.dumps(version.plain(), indent=1, sort_keys=True) + "\n"
    return store.put_new(file_name(version.number), text.encode())


def lines(version: Version, before: Version | None, *, purged: bool = False) -> Sequence[str]:
    """What a version is, for people: rows, bytes, what came and what went since ``before``.

    purged: ``is_purged``.
    """
    old = {shard.file: shard for shard in (before.shards if before else ())}
    new = {shard.file: shard for shard in version.shards}
    added = [shard for name, shard in new.items() if name not in old]
    gone = [shard for name, shard in old.items() if name not in new]
    rejected = sum(shard.rows or 0 for shard in version.rejected)
    found = [
        f"version {version.number}  {version.step}: {version.rows} rows in {len(new)} shards, "
        f"{version.bytes / 1e6:.1f} MB, {rejected} rejected"
        + "; purged, can no longer be read"
        * purged
    ]
    for sign, shards in (("+", added), ("-", gone)):
        if shards:
            rows, size = (sum(getattr(s, n) or 0 for s in shards) for n in ("rows", "bytes"))
            found.append(f"  {sign} {rows} rows in {len(shards)} shards, {size / 1e6:.1f} MB")
    return found
