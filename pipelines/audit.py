"""``layerflow audit``: what every clip was made of, under which licences, and what these ask.

Reads the columns without media. Hours are those of moving clips; a clip of several sources counts
for each of them.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from layerflow.corpus.changes.tombstones import Tombstones, made_of, source_tokens
from layerflow.corpus.published import PublishedCorpus
from layerflow.corpus.stats import NO_LICENCE, small_rows
from layerflow.corpus.table import Corpus
from layerflow.files import write_bytes
from layerflow.locations import clean_uri
from layerflow.outputs import local_output
from pipelines.publish.licences import asks_of

AnyCorpus = Corpus | PublishedCorpus
COLUMNS = ("id", "kind", "source", "sha256", "start", "end", "seconds", "licence", "attribution",
           "parents", "asks")  # fmt: skip


NONE: frozenset[str] = frozenset()


@lru_cache(maxsize=10_000)
def _joined(have: frozenset[str], more: frozenset[str]) -> frozenset[str]:
    """Both; equal ones are one object, since a large corpus has very many sources."""
    return have | more


@dataclass(slots=True)
class Share:
    """Clips and hours of one source or licence. names: of sources its licences, of licences its
    sources; credits: attributions; asks: see ``licences.asks_of``."""

    clips: int = 0
    seconds: float = 0.0
    names: set[str] | frozenset[str] = NONE
    credits: set[str] | frozenset[str] = NONE
    asks: frozenset[str] = NONE

    def plain(self) -> dict[str, Any]:
        return {
            "clips": self.clips,
            "hours": round(self.seconds / 3600, 4),
            "names": sorted(self.names),
            "attributions": sorted(self.credits),
            "asks": sorted(self.asks),
        }


def sources_of(row: Mapping[str, Any]) -> list[str]:
    """The files that a row was made of, each once, its own first."""
    origin = row["origin"]
    names = [origin["uri"] or "", *(origin["parents"] or ())]
    return list(dict.fromkeys(clean_uri(name.partition("#")[0]) for name in names if name))


def audit_rows(corpus: AnyCorpus, source: str | None = None) -> Iterator[dict[str, Any]]:
    """Every row with ``COLUMNS``, or those made of a source, and of what was made of it."""
    rows = list(small_rows(corpus)) if source is not None else small_rows(corpus)
    wanted = None if source is None else _ids_made_of(rows, source)
    for row in rows:
        if wanted is not None and row["id"] not in wanted:
            continue
        origin = row["origin"]
        yield {
            "id": row["id"],
            "kind": row["kind"],
            "source": clean_uri(origin["uri"] or ""),
            **{name: origin[name] for name in ("sha256", "start", "end")},
            "seconds": row["num_frames"] / row["fps"] if row["kind"] != "image" else 0.0,
            **{name: origin[name] for name in ("licence", "attribution")},
            "parents": [clean_uri(parent) for parent in origin["parents"] or ()],
            "asks": sorted(asks_of(origin["licence"])),
        }


def _ids_made_of(rows: Any, source: str) -> set[str]:
    tokens, found = source_tokens(source), set[str]()
    left = [(row["id"], made_of(row)) for row in rows]
    while met := [id for id, own in left if own & tokens]:
        left = [(id, own) for id, own in left if not own & tokens]
        found.update(met)
        tokens = {f"id:{id}" for id in met}
    return found


@lru_cache(maxsize=10_000)
def _of(name: str | None) -> frozenset[str]:
    return frozenset([name]) if name else NONE


@lru_cache(maxsize=10_000)
def _asks(licence: str | None) -> frozenset[str]:
    return frozenset(asks_of(licence))


def audit(corpus: AnyCorpus) -> dict[str, Any]:
    """Shares by source and by licence, and what was removed, as plain JSON values."""
    sources: defaultdict[str, Share] = defaultdict(Share)
    licences: defaultdict[str, Share] = defaultdict(lambda: Share(names=set(), credits=set()))
    for row in small_rows(corpus):
        origin = row["origin"]
        licence = origin["licence"] or NO_LICENCE
        seconds = row["num_frames"] / row["fps"] if row["kind"] != "image" else 0.0
        names = sources_of(row)
        own, credit, asks = _of(licence), _of(origin["attribution"]), _asks(origin["licence"])
        of = licences[licence]
        of.names |= set(names)
        of.credits |= credit
        for share in (*(sources[name] for name in names), of):
            share.clips += 1
            share.seconds += seconds
            share.asks = _joined(share.asks, asks)
        for share in (sources[name] for name in names):
            share.names = _joined(frozenset(share.names), own)
            share.credits = _joined(frozenset(share.credits), credit)
    entries = Tombstones.of_all([corpus]).entries
    about = ("by", "date", "reason", "rows")
    return {
        "sources": {name: sources[name].plain() for name in sorted(sources)},
        "licences": {name: licences[name].plain() for name in sorted(licences)},
        "removed": [{name: getattr(entry, name) for name in about} for entry in entries],
    }


def write_rows(rows: Iterator[dict[str, Any]], out: Path) -> int:
    """Rows of ``audit_rows`` as a CSV file; returns how many."""
    text, count = io.StringIO(newline=""), 0
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
        count += 1
    write_bytes(local_output(out), text.getvalue().encode())
    return count


def _cell(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return f"'{value}"  # a spreadsheet would run it
    return value
