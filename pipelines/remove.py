"""``layerflow remove``: rows of a source, and everything made of it, out of a corpus for good.

    what is asked for -> marks -> rows that show one, and rows made of these -> a new version
    without them, with a tombstone -> latents that were encoded of them -> their bytes, on request

Earlier versions can be read until ``purge``. The tombstone keeps what it marks from coming back:
``layerflow.corpus.changes.tombstones``.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerflow.corpus import log
from layerflow.corpus.changes.tombstones import (
    Tombstone,
    Tombstones,
    licence_tokens,
    made_of,
    mark,
    source_tokens,
)
from layerflow.corpus.latent_rows import DRAWN, ORIGINS
from layerflow.corpus.latents import Latents, LatentsWriter
from layerflow.corpus.log import Shard, Version
from layerflow.corpus.stats import general_reason
from layerflow.corpus.store import Store
from layerflow.corpus.table import REJECTED_SCHEMA, Corpus, Table
from layerflow.corpus.writer import record_batches, write_shard
from layerflow.layer_set import prompted_of
from layerflow.locations import clean_uri, one_line, without_secrets
from layerflow.outputs import local_output
from pipelines.engine.rewriting import Rewriting, pieces_of, rewrite, write_overlay
from pipelines.engine.staging import locked
from pipelines.engine.workers import Pool

ABOUT = ("id", "kind", "origin")
REFUSED = "rejected.jsonl"


@dataclass(frozen=True)
class Wanted:
    """What is to go. sources: addresses or content hashes; licences: names; ids: of rows; like:
    corpora, for all that was removed from them."""

    sources: Sequence[str] = ()
    licences: Sequence[str] = ()
    ids: Collection[str] = ()
    like: Sequence[str | Path] = ()

    @property
    def by(self) -> str:
        names = {"source": self.sources, "licence": self.licences, "ids": self.ids}
        return "+".join(name for name, given in names.items() if given) or "like"

    def marks(self) -> set[str]:
        """Of what is asked for itself. Raises ValueError for corpora without tombstones."""
        tokens = {f"id:{id}" for id in self.ids}
        for source in self.sources:
            tokens |= source_tokens(source)
        for licence in self.licences:
            tokens |= licence_tokens(licence)
        found = {mark(token) for token in tokens}
        for where in self.like:
            entries = Tombstones.of_all([Corpus.open(where)]).entries
            if not entries:
                raise ValueError(f"{where}: nothing was ever removed from it")
            found |= {each for entry in entries for each in entry.marks}
        return found


@dataclass(frozen=True)
class Removed:
    """The version that the corpus is at; rows that went, by what of them was marked; rows of
    latents that went, by folder; files that were purged."""

    version: int
    rows: int
    sources: int
    latents: dict[str, int]
    purged: int


def run_remove(
    path: str | Path,
    wanted: Wanted | None = None,
    *,
    reason: str = "",
    latents: Sequence[str | Path] = (),
    purge: bool = False,
    workers: int | None = None,
    quiet: bool = False,
) -> Removed:
    """Remove rows from a corpus, here or in an object store, and from latents made of it.

    wanted: None: what earlier removals marked, of ``latents`` and with ``purge``. latents: folders
    that ``encode`` made of the corpus. purge: also remove the shards of earlier versions that hold
    such rows. Run again, it goes on. Raises ValueError when nothing in the corpus is meant, and
    the errors of ``rewrite``.
    """
    found: list[dict[str, Any]] = []
    purged: list[str] = []
    stores = [_opened(folder) for folder in latents]

    def plan(corpus: Corpus) -> Rewriting | None:
        assert corpus.version is not None
        before = Tombstones.of(corpus.store, corpus.version)
        if wanted is None:
            if not before.entries:
                raise ValueError(f"{path}: say what is to be removed")
            return None
        rows, marks = _rows_made_of(corpus, wanted)
        new = frozenset(marks - {m for entry in before.entries for m in entry.marks})
        if not rows and not new:
            return None  # the same request again
        if not rows and not wanted.like and not _was_rejected(corpus, marks):
            raise ValueError(f"{path}: there is no row of it; see `layerflow audit`")
        found.extend(rows)
        return _rewriting(corpus, rows, marks, wanted.by, reason)

    def finish(store: Store, version: Version) -> None:
        tombstones = Tombstones.of(store, version)
        if purge:
            purged.extend(purge_files(store, version, tombstones))

    version = rewrite(path, plan, Pool(workers, quiet), finish=finish)
    tombstones = Tombstones.of(Store(path), version)
    dropped = {str(have.path): drop_latents(have, tombstones) for have in stores}
    sources = {clean_uri(row["origin"]["uri"] or "") for row in found}
    return Removed(version.number, len(found), len(sources), dropped, len(purged))


def _rows_made_of(corpus: Corpus, wanted: Wanted) -> tuple[list[dict[str, Any]], set[str]]:
    """Rows that show a mark, rows made of these, and so on; and the marks of all of them.

    What is removed by its source is marked by its content and all addresses of that, so that a copy
    is known. So is what is removed by its licence, where a row is of one source alone.
    """
    marks = wanted.marks()
    same = {mark(token) for source in wanted.sources for token in source_tokens(source)}
    rows = [(row, {mark(token) for token in made_of(row)}) for row in corpus.rows(ABOUT)]
    found: list[dict[str, Any]] = []
    while True:
        before = len(found), len(marks)
        found += [row for row, own in rows if own & marks]
        rows = [(row, own) for row, own in rows if not own & marks]
        for row in found:
            source = row["origin"]
            own = {mark(f"file:{clean_uri(source['uri'] or '')}")}
            own |= {mark(f"sha256:{source['sha256']}")} if source["sha256"] else set()
            if own & same or (wanted.licences and row["kind"] != "pasted"):
                same |= own
            marks |= {mark(f"id:{row['id']}")} | same
        if (len(found), len(marks)) == before:
            return found, marks


def _was_rejected(corpus: Corpus, marks: Collection[str]) -> bool:
    entry = Tombstone("", "", "", 0, frozenset(marks))
    tombstones = Tombstones((entry,))
    return any(tombstones.meets(source_tokens(row["uri"])) for row in corpus.rejected())


def _rewriting(
    corpus: Corpus, rows: Sequence[dict[str, Any]], marks: set[str], by: str, reason: str
) -> Rewriting:
    base = corpus.version
    assert base is not None
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    why = one_line(without_secrets(reason))[:300]
    entry = Tombstone(by, today, why, len(rows), frozenset(marks))
    names = tuple(dict.fromkeys((*base.tombstones, entry.put(corpus.store))))
    ids = {row["id"] for row in rows}
    uris = {row["origin"]["uri"] or "" for row in rows}
    uris = {uri for uri in uris if mark(f"file:{clean_uri(uri)}") in marks}
    rejected, about = _rejected(corpus, Tombstones((entry,)), uris)
    overlay = _overlay(corpus, ids)
    changes = {"tombstones": names, "rejected": rejected, "overlay": overlay, "info": about}
    return Rewriting("remove", [[piece] for piece in pieces_of(corpus, ids)], changes)


def _rejected(
    corpus: Corpus, tombstones: Tombstones, uris: Collection[str]
) -> tuple[tuple[Shard, ...], dict[str, Any]]:
    """The rejected table without what it says of removed sources, and what ``info`` says of it."""
    base = corpus.version
    assert base is not None
    shards: list[Shard] = []
    reasons: Counter[str] = Counter()
    where = corpus.store.below(log.REJECTED)
    for shard in base.rejected:
        rows = list(Table(where.where, (shard,)).rows())
        kept = [
            row
            for row in rows
            if tombstones.meets(source_tokens(row["uri"])) is None
            and not any(uri and uri in (row["reason"] or "") for uri in uris)
        ]
        reasons.update(general_reason(row["stage"], row["reason"]) for row in kept)
        if len(kept) < len(rows):
            shard = write_shard(where, record_batches(kept, REJECTED_SCHEMA), REJECTED_SCHEMA)
        shards.append(shard)
    count = sum(shard.rows or 0 for shard in shards)
    return tuple(shards), {"rejected": count, "reasons": dict(reasons)}


def _overlay(corpus: Corpus, ids: Collection[str]) -> tuple[Shard, ...]:
    """The overlay without values of removed rows."""
    base = corpus.version
    assert base is not None
    values = corpus.overlay.values
    kept = {id: new for id, new in values.items() if id not in ids}
    if len(kept) == len(values):
        return base.overlay
    return (write_overlay(corpus.store, kept),) if kept else ()


# ---- latents and bytes ---------------------------------------------------------------------------


def _opened(folder: str | Path) -> Latents:
    return Latents.open(local_output(folder))


def drop_latents(have: Latents, tombstones: Tombstones) -> int:
    """Write a latents folder anew without rows whose clip was removed or drawn of what was, and
    without prompts that only they had. Returns how many rows went."""
    out = have.path
    busy = f"{out}: another job is writing these latents"
    with locked(out.with_name(f".{out.name}.staging") / "lock", busy):
        have = Latents.open(out)
        drawn = _lines(out / ORIGINS)
        made = {row["id"] for row in drawn if tombstones.refuses(row)}
        gone = [id in made or tombstones.knows(id) for id in have.column("source")]
        if not any(gone):
            return 0
        kept = [index for index, removed in enumerate(gone) if not removed]
        names = [f"{layer}_prompt" for layer in prompted_of(have.layers.layers)]
        columns = [have.column(name) for name in names]
        used = {column[index] for column in columns for index in kept}
        refused = [
            row
            for row in _lines(out / REFUSED)
            if not tombstones.knows(row["id"]) and not tombstones.meets(source_tokens(row["id"]))
        ]
        with LatentsWriter(out, have.fingerprint) as writer:
            writer.clips(have.raw(index) for index in kept)
            writer.prompts(row for row in have.prompt_rows() if row["key"] in used)
            _put_lines(writer.folder / REFUSED, refused)
            _put_lines(writer.folder / ORIGINS, [row for row in drawn if row["id"] not in made])
            if (out / DRAWN).is_file():
                shutil.copyfile(out / DRAWN, writer.folder / DRAWN)
    return sum(gone)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _put_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def purge_files(store: Store, version: Version, tombstones: Tombstones) -> list[str]:
    """Remove the files of earlier versions that hold rows of tombstones; returns their names.

    What ``version`` names stays; it holds none of them.
    """
    kept = set(log.files_of(version))
    held = store.names()
    removed: list[str] = []
    for number in log.numbers(store):
        for place, shard in log.files_of(log.read(store, number)).items():
            if place in kept or place in removed or place not in held:
                continue
            if _holds_removed(store, place, shard, tombstones):
                store.remove(place)
                removed.append(place)
    return removed


def _holds_removed(store: Store, place: str, shard: Shard, tombstones: Tombstones) -> bool:
    folder, _, _ = place.rpartition("/")
    table = Table(store.below(folder).where if folder else store.where, (shard,))
    if folder == log.REJECTED:
        return any(tombstones.meets(source_tokens(row["uri"])) for row in table.rows(["uri"]))
    if folder == log.OVERLAY:
        return any(tombstones.knows(row["id"]) for row in table.rows(["id"]))
    return any(tombstones.refuses(row) for row in table.rows(ABOUT))
