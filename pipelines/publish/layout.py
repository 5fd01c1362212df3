"""Which rows lie in which file of a dataset repository, so that a later version sends little.

A row stays in the file in which it was first published; a file is written anew only when a row of
it changes or goes; new rows go into new files after the others. So the rows of a repository stand
in the order in which they came to it, and within a file in that of the corpus.

    publication/CONFIG.json    the parts, and every file with its checksums and its key
    publication/CONFIG.ids     the ids of their rows, 64 bits each, part after part

The key of a file is a hash of what its rows are made of: where they lie in which shard (by its
checksum), what was corrected of them, the columns. A file of the same key is not made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from layerflow.documents import parse_json
from pipelines.publish.tables import shard_rows

FOLDER = "publication"
FOLDER_FILES = 1000
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Sent:
    """A file: its bytes and checksums. sha1: git's, of ``blob <size>\\0`` and the bytes, of files
    that may be stored without LFS. key: what it was made of; held: bytes of its rows in memory."""

    size: int
    sha256: str
    sha1: str | None = None
    key: str = ""
    held: int = 0


@dataclass(frozen=True)
class Part:
    """Some rows of a split, which share a file of the corpus and one of the previews.

    ids: uint64 of each; rows: their places in the corpus, ascending int64, where they are known;
    bytes: of their media, then.
    """

    split: str
    number: int
    ids: np.ndarray = field(repr=False, compare=False)
    rows: np.ndarray = field(repr=False, compare=False, default_factory=lambda: np.zeros(0, int))
    bytes: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Publication:
    """What a repository holds of a configuration. tag: the name of this version; corpus: its
    version in the log of the corpus, if it has one."""

    parts: tuple[Part, ...] = ()
    files: Mapping[str, Sent] = field(default_factory=dict)
    tag: str = ""
    corpus: int | None = None

    @classmethod
    def parse(cls, text: bytes, ids: bytes, where: str) -> Publication:
        """Raises ValueError for a damaged one, or one of a newer toolkit."""
        found = parse_json(text, where)
        try:
            if found["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format is {str(found['format_version'])[:20]}")
            numbers = np.frombuffer(ids, "<u8").astype(np.uint64)
            rows = [int(part["rows"]) for part in found["parts"]]
            if sum(rows) != len(numbers) or min(rows, default=0) < 0:
                raise ValueError("its ids are of another publication")
            pieces = np.split(numbers, np.cumsum(rows)[:-1]) if rows else []
            parts = tuple(
                Part(str(part["split"]), int(part["number"]), own)
                for part, own in zip(found["parts"], pieces, strict=True)
            )
            files = {str(name): _sent(entry) for name, entry in found["files"].items()}
            return cls(parts, files, str(found["tag"])[:100], found["corpus"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{where} cannot be read: {repr(error)[:300]}") from error

    def text(self) -> bytes:
        about = {
            "format_version": FORMAT_VERSION,
            "tag": self.tag,
            "corpus": self.corpus,
            "parts": [
                {"split": part.split, "number": part.number, "rows": len(part.ids)}
                for part in self.parts
            ],
            "files": {name: asdict(sent) for name, sent in self.files.items()},
        }
        return (json.dumps(about, indent=0, sort_keys=True) + "\n").encode()

    def id_bytes(self) -> bytes:
        return b"".join(part.ids.astype("<u8").tobytes() for part in self.parts)

    def ids(self) -> np.ndarray:
        """uint64 ``[rows]``, in the order of the files."""
        return np.concatenate([np.zeros(0, np.uint64), *(part.ids for part in self.parts)])


def _sent(entry: Mapping[str, Any]) -> Sent:
    sent = Sent(**entry)
    if type(sent.size) is not int or type(sent.held) is not int or type(sent.sha256) is not str:
        raise ValueError(f"a file is {str(entry)[:100]}")
    return sent


def record_names(config: str) -> tuple[str, str]:
    """The files that hold the record of a configuration."""
    return f"{FOLDER}/{config}.json", f"{FOLDER}/{config}.ids"


def file_name(folder: str, split: str, number: int, splits: int = 1) -> str:
    """``data/train-00012.parquet``; with ``splits`` splits a folder holds at most 1,000 files."""
    more = number // (FOLDER_FILES // splits)
    below = f"/more-{more:03d}" if more else ""
    return f"{folder}{below}/{split}-{number:05d}.parquet"


def patterns(folder: str, split: str, names: Iterable[str]) -> list[str]:
    """What finds the files ``names`` of a split, and in their order: ``data/train-*.parquet``."""
    folders = {name.rpartition("/")[0] for name in names}
    more = [f"{folder}/more-*/{split}-*.parquet"] if folders - {folder} else []
    return [f"{folder}/{split}-*.parquet", *more]


def lay_out(
    ids: np.ndarray,
    splits: Mapping[str, np.ndarray],
    sizes: np.ndarray,
    limit: int,
    before: Publication | None = None,
) -> list[Part]:
    """The parts of a publication, without keys. ids: uint64 ``[rows]``; splits: places of their
    rows; sizes: int64 ``[rows]``, bytes of each; limit: bytes of a new part, but one row at least.
    """
    owner = _owners(ids, before)
    old = before.parts if before is not None else ()
    parts = []
    for split, rows in splits.items():
        here = np.asarray([*(part.split == split for part in old), False])  # -1 is the last
        mine = np.where(here[owner[rows]], owner[rows], -1)
        held = {old[place].number: rows[mine == place] for place in np.unique(mine[mine >= 0])}
        new = rows[mine < 0]
        if len(new):
            first = 1 + max((part.number for part in old if part.split == split), default=-1)
            pieces = np.split(new, np.cumsum(shard_rows(sizes[new], limit))[:-1])
            held |= dict(enumerate(pieces, first))
        parts += [
            Part(split, number, ids[own], own, int(sizes[own].sum()))
            for number, own in sorted(held.items())
        ]
    return parts


def _owners(ids: np.ndarray, before: Publication | None) -> np.ndarray:
    """int64 ``[rows]``: the place of the part that held each row; -1: none did."""
    if before is None or not before.parts:
        return np.full(len(ids), -1, np.int64)
    known = before.ids()
    parts = np.repeat(np.arange(len(before.parts)), [len(part.ids) for part in before.parts])
    order = np.argsort(known, kind="stable")
    places = np.minimum(np.searchsorted(known[order], ids), len(known) - 1)
    found = order[places]
    return np.where(known[found] == ids, parts[found], -1).astype(np.int64)


def file_key(
    rows: np.ndarray,
    firsts: Sequence[int],
    sums: Sequence[str],
    corrected: Mapping[str, Any],
    settings: str,
) -> str:
    """The key of a file. firsts, sums: the first row and the sha256 of each shard of the corpus;
    corrected: new values of its rows by their ids; settings: all else that its bytes depend on."""
    shards = np.searchsorted(np.asarray(firsts), rows, side="right") - 1
    places = rows - np.asarray(firsts)[shards]
    digest = hashlib.sha256(json.dumps([settings, corrected], sort_keys=True).encode())
    for shard in np.unique(shards):
        digest.update(sums[shard].encode())
        digest.update(places[shards == shard].astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def next_tag(tags: Iterable[str], corpus: int | None) -> str:
    """``v3``: the number of the corpus' version, but higher than every tag that there is."""
    numbers = [int(tag[1:]) for tag in tags if tag[:1] == "v" and tag[1:].isdigit()]
    return f"v{max([corpus or 1, *(number + 1 for number in numbers)])}"
