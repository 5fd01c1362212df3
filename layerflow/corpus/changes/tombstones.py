"""Tombstones: what was removed from a corpus and must not come back to it.

A tombstone says when, why and how many rows, and holds marks: hashes of what the rows were made of.
It has no content and no name of a source. The rows of a job, of a merge or of a replay that show
one of its marks are left out.

A mark is the sha256 of a token: ``file:ADDRESS``, ``sha256:CONTENT``, ``id:CLIP`` as of
``layerflow.corpus.splits``, or ``licence:NAME``. A known address can be looked up by its mark.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from layerflow.corpus.log import VERSIONS, Version
from layerflow.corpus.splits import tokens_of
from layerflow.corpus.store import Store
from layerflow.locations import clean_uri, one_line, without_secrets

MARK = re.compile(r"[0-9a-f]{32}")
MAX_BYTES = 1 << 30
STEP = "removed"
"""``stage`` of the rejected rows that stand for what was left out."""
COMMONS = re.compile(
    r"(?:https?://)?(?:www\.)?creativecommons\.org/(licenses|publicdomain)/([a-z+-]+)/(\d\.\d)\S*",
    re.IGNORECASE,
)
Row = Mapping[str, Any]


def normal_licence(licence: str) -> str:
    """A licence text as an identifier is written: ``CC BY 4.0`` -> ``cc-by-4.0``, addresses of
    Creative Commons too."""
    text = licence.strip()
    if address := COMMONS.fullmatch(text):
        name = address[2].lower()
        if address[1].lower() == "publicdomain":
            text = f"cc0-{address[3]}" if name == "zero" else "public domain"
        else:
            text = f"cc-{name}-{address[3]}"
    text = re.sub(r"[\s_]+", "-", text.lower())
    text = re.sub(r"^creative-commons-", "cc-", text)
    text = re.sub(r"^cc-?0(-1\.0)?$", "cc0-1.0", text)
    return "public domain" if text == "public-domain" else text


def made_of(row: Row) -> set[str]:
    """Tokens of everything that a row says it was made of, of itself and of its licences.

    row: with ``id`` and ``origin``.
    """
    source = row["origin"]
    found = {f"id:{row['id']}", *source_tokens(source["uri"])}
    if source["sha256"]:
        found.add(f"sha256:{source['sha256']}")
    for parent in source["parents"] or ():
        found |= source_tokens(parent)
    return found | licence_tokens(source["licence"])


def source_tokens(name: str | None) -> set[str]:
    """Of a source by what names it: an address, ``file#clip``, a clip's id or a content hash."""
    return tokens_of(clean_uri(name)) if name else set()


def licence_tokens(licence: str | None) -> set[str]:
    """Of a licence or of several joined ones."""
    return {f"licence:{normal_licence(part)}" for part in (licence or "").split("; ") if part}


def mark(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Tombstone:
    """One removal. by: ``source``, ``licence`` or ``ids``; date: of the day, as ISO 8601."""

    by: str
    date: str
    reason: str
    rows: int
    marks: frozenset[str]

    def text(self) -> str:
        about = {"by": self.by, "date": self.date, "reason": self.reason, "rows": self.rows}
        return "\n".join([json.dumps(about, sort_keys=True), *sorted(self.marks)]) + "\n"

    @property
    def file(self) -> str:
        """Its name in ``versions/``."""
        return f"tombstone-{hashlib.sha256(self.text().encode()).hexdigest()[:16]}.txt"

    def put(self, store: Store) -> str:
        """Write it beside the log of a corpus; returns ``file``."""
        store.put(f"{VERSIONS}/{self.file}", self.text().encode())
        return self.file

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"removed on {self.date}{why}"


def read_tombstone(store: Store, name: str) -> Tombstone:
    """Raises ValueError when it is not there or damaged: then nobody knows what must stay out."""
    where = store.location(f"{VERSIONS}/{name}")
    try:
        first, *marks = store.read(f"{VERSIONS}/{name}", 0, MAX_BYTES).decode().splitlines()
        about = json.loads(first)
        words = [one_line(without_secrets(str(about[key]))) for key in ("by", "date", "reason")]
        if type(about["rows"]) is not int or not all(map(MARK.fullmatch, marks)):
            raise ValueError("rows or marks are none")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read: {str(error)[:200]}") from error
    by, date, reason = words
    return Tombstone(by[:40], date[:10], reason[:300], about["rows"], frozenset(marks))


@dataclass(frozen=True)
class Tombstones:
    """Those of a corpus, or of several."""

    entries: tuple[Tombstone, ...] = ()

    @classmethod
    def of(cls, store: Store, version: Version | None) -> Tombstones:
        """Those that a version of the corpus in ``store`` names."""
        names = version.tombstones if version is not None else ()
        return cls(tuple(read_tombstone(store, name) for name in names))

    @classmethod
    def of_all(cls, corpora: Iterable[Any]) -> Tombstones:
        """Those of corpora, each once; a published corpus has none."""
        found: dict[str, Tombstone] = {}
        for corpus in corpora:
            version = getattr(corpus, "version", None)
            if version is not None:
                found |= {one.file: one for one in cls.of(corpus.store, version).entries}
        return cls(tuple(found.values()))

    @cached_property
    def _of_mark(self) -> dict[str, Tombstone]:
        return {mark: entry for entry in reversed(self.entries) for mark in entry.marks}

    def meets(self, tokens: Iterable[str]) -> Tombstone | None:
        """The tombstone that knows one of the tokens."""
        if not self.entries:
            return None
        return next((t for token in tokens if (t := self._of_mark.get(mark(token)))), None)

    def refuses(self, row: Row) -> str | None:
        """Why a row (with ``id`` and ``origin``) may not be in the corpus; None if it may."""
        met = self.meets(made_of(row)) if self.entries else None
        return None if met is None else f"its source was {met}"

    def knows(self, id: str) -> bool:
        """Whether the row of this id was removed."""
        return self.meets([f"id:{id}"]) is not None

    def cleaned(self, rejected: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Rows of a rejected table; those of removed sources say neither which nor when."""
        for batch in rejected:
            if not self.entries:
                yield batch
                continue
            rows = []
            for row in batch.to_pylist():
                met = self.meets(source_tokens(row["uri"]))
                rows.append(row if met is None else left_out(row, f"its source was {met}"))
            yield pa.RecordBatch.from_pylist(rows, schema=batch.schema)

    def put(self, store: Store) -> tuple[str, ...]:
        """Write all of them beside the log of another corpus; returns their names."""
        return tuple(entry.put(store) for entry in self.entries)


def left_out(row: Row, why: str) -> dict[str, Any]:
    """The rejected row that stands for one which may not come back, without its content.

    row: of a corpus or of a rejected table.
    """
    about = {"kind": row["kind"], "recipe": row["recipe"], "stage": STEP, "reason": why}
    return {"uri": "", "start": None, "end": None, "quality": None, **about}
