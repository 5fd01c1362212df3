"""What is in a corpus: counts, sizes, scores, licences, duplicates, rejections.

Read column by column from the memory-mapped shards; media bytes are touched only where two cells
have the same length, to see whether they are duplicates.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from layerflow.clip import BLENDED, LAYERS, PROMPTED
from layerflow.corpus.columns import COLUMNS, small_columns
from layerflow.corpus.published import Chunk, PublishedCorpus
from layerflow.corpus.scores import QUALITY_FIELDS
from layerflow.corpus.table import SCHEMA, Corpus, Table

NO_LICENCE = "not stated"
PERCENTILES = (5, 25, 50, 75, 95)
AHEAD = 4096
MOST_VALUES = 1 << 18


def chunks(table: Table | PublishedCorpus) -> Iterator[Chunk]:
    """A table piece by piece: functions from column names (None: all) to a record batch, so that
    the small columns of a piece can be looked at before its media are read."""
    yield from table.chunks()


def read_batches(
    table: Table | PublishedCorpus, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The record batches of a table, in order; columns that are not wanted are not read."""
    for chunk in chunks(table):
        yield chunk(columns)


def small_rows(table: Table | PublishedCorpus) -> Iterator[dict[str, Any]]:
    """Every row without its media cells, in order."""
    for batch in read_batches(table, small_columns(table.schema)):
        yield from batch.to_pylist()


_NUMBER = re.compile(r"(?<![A-Za-z]-)(?<![A-WYZa-wyz0-9])-?[0-9][0-9.]*")  # not that of UTF-8

_BOUND = re.compile(r"\bN (above|below|over|under) N\b")


def general_reason(step: str | None, reason: str | None) -> str:
    """``step: reason`` without its numbers, so that like rejections count together: a score that
    is 0.1 below 0.2 is below its bound, other numbers are N."""
    said = _BOUND.sub(r"\1 its bound", _NUMBER.sub("N", reason or ""))
    return f"{step}: {said}"


def tallied(rejected: Iterable[pa.RecordBatch], reasons: Counter[str]) -> Iterator[pa.RecordBatch]:
    """Rejected rows as they are; ``reasons`` counts them by ``general_reason`` as they pass."""
    for batch in rejected:
        stages, why = (batch.column(name).to_pylist() for name in ("stage", "reason"))
        reasons.update(map(general_reason, stages, why))
        yield batch


@dataclass
class Values:
    """Count, sum and ends of numbers that pass, and at most ``MOST_VALUES`` of them (float32),
    evenly chosen."""

    kept: array[float] = field(default_factory=lambda: array("f"))
    count: int = 0
    total: float = 0.0
    least: float = float("inf")
    greatest: float = float("-inf")
    step: int = 1

    def extend(self, values: np.ndarray) -> None:
        """Let numbers pass, float64 ``[N]``."""
        self.least = min(self.least, float(values.min(initial=np.inf)))
        self.greatest = max(self.greatest, float(values.max(initial=-np.inf)))
        self.total += float(values.sum())
        while len(values):
            first = -self.count % self.step
            room = MOST_VALUES + 1 - len(self.kept)  # the last one of it halves what is kept
            some = values[: first + (room - 1) * self.step + 1]
            self.kept.frombytes(some[first :: self.step].astype(np.float32).tobytes())
            if len(self.kept) > MOST_VALUES:
                self.kept = self.kept[::2]
                self.step *= 2
            self.count += len(some)
            values = values[len(some) :]


def stats(corpus: Corpus | PublishedCorpus) -> dict[str, Any]:
    """Counts, seconds, bytes, score percentiles, licences, duplicates and rejection reasons.

    Everything is a plain JSON value. Seconds are ``num_frames / fps``, of a still 0. Bytes are
    those of the media cells. Score percentiles leave rows without the score out.
    """
    kinds: defaultdict[str, _Share] = defaultdict(_Share)
    licences: defaultdict[str | None, _Share] = defaultdict(_Share)
    total = _Share()
    sources: Counter[str] = Counter()
    counters: dict[str, Counter[str]] = {name: Counter() for name in ("size", "num_frames", "fps")}
    counted = [column.name for column in COLUMNS if column.counted]
    counters |= {name: Counter() for name in counted}
    prompts = {layer: _Prompts() for layer in PROMPTED}
    scores = {name: Values() for name in QUALITY_FIELDS}
    sizes = cell_bytes(corpus)
    for row, size in zip(_scored_rows(corpus, scores), plain_rows(sizes), strict=True):
        source = row["origin"]["uri"]
        seconds = row["num_frames"] / row["fps"] if row["kind"] != "image" else 0.0
        for share in (kinds[row["kind"]], licences[row["origin"]["licence"] or None], total):
            share.add(row["num_frames"], seconds, sum(size), source)
        sources[source] += 1
        counters["size"][f"{row['width']}x{row['height']}"] += 1
        counters["num_frames"][str(row["num_frames"])] += 1
        counters["fps"][f"{row['fps']:g}"] += 1
        for name in counted:
            if row.get(name) is not None:
                counters[name][row[name]] += 1
        for layer in PROMPTED:
            prompts[layer].add(row[f"{layer}_prompt"])
    return {
        "rows": total.clips,
        "seconds": round(total.seconds, 3),
        "frames": total.frames,
        "bytes": {**dict(zip(LAYERS, sizes.sum(axis=0).tolist(), strict=True)), "all": total.bytes},
        "kinds": {kind: share.plain() for kind, share in sorted(kinds.items())},
        **{
            name: dict(counter.most_common(20))
            for name, counter in counters.items()
            if counter or name in SCHEMA.names or name == "size"
        },
        "sources": {"count": len(sources), "most": dict(sources.most_common(10))},
        "prompts": {layer: seen.plain() for layer, seen in prompts.items()},
        "scores": {name: _distribution(values) for name, values in scores.items() if values.count},
        "licences": {k or NO_LICENCE: licences[k].plain() for k in sorted(licences, key=str)},
        "without_licence": licences[None].clips,
        "duplicates": duplicates(corpus, sizes),
        "rejected": _rejected(corpus),
    }


def scores_of(batch: pa.RecordBatch) -> dict[str, np.ndarray]:
    """The scores of a batch's column ``quality``, float64 each, without rows that have none."""
    quality = batch.column("quality")
    rows = pa.StructArray.from_arrays(quality.flatten(), fields=list(quality.type))  # nulls inside
    return {
        column.name: rows.field(column.name).drop_null().to_numpy(False).astype(np.float64)
        for column in quality.type
    }


def _scored_rows(
    corpus: Corpus | PublishedCorpus, scores: Mapping[str, Values]
) -> Iterator[dict[str, Any]]:
    """``small_rows`` without their scores, which pass to ``scores`` column by column."""
    for batch in read_batches(corpus, small_columns(corpus.schema)):
        for name, found in scores_of(batch).items():
            if name in scores:
                scores[name].extend(found)
        yield from batch.drop_columns(["quality"]).to_pylist()


@dataclass
class _Share:
    clips: int = 0
    frames: int = 0
    seconds: float = 0.0
    bytes: int = 0
    sources: set[str] = field(default_factory=set)

    def add(self, frames: int, seconds: float, size: int, source: str) -> None:
        self.clips += 1
        self.frames += frames
        self.seconds += seconds
        self.bytes += size
        self.sources.add(source)

    def plain(self) -> dict[str, Any]:
        return {
            "clips": self.clips,
            "sources": len(self.sources),
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "bytes": self.bytes,
        }


def cell_bytes(corpus: Corpus | PublishedCorpus) -> np.ndarray:
    """uint32 ``[rows, 4]``: bytes of each media cell, layers in their order (from the offsets)."""
    found = np.zeros((len(corpus), len(LAYERS)), np.uint32)
    first = 0
    for batch in read_batches(corpus, LAYERS):
        for place, column in enumerate(batch.columns):
            lengths = pc.binary_length(column).fill_null(0).to_numpy(False)
            found[first : first + batch.num_rows, place] = lengths
        first += batch.num_rows
    return found


def id_number(id: str) -> int:
    """A number of 64 bits for a row's id: the id itself where it is 16 digits, as ours are."""
    if re.fullmatch(r"[0-9a-f]{16}", id):
        return int(id, 16)
    return int(hashlib.sha256(id.encode()).hexdigest()[:16], 16)


def id_numbers(corpus: Corpus | PublishedCorpus) -> np.ndarray:
    """uint64 ``[rows]``: ``id_number`` of each."""
    batches = read_batches(corpus, ["id"])
    numbers = (id_number(id) for batch in batches for id in batch.column("id").to_pylist())
    return np.fromiter(numbers, np.uint64, len(corpus))


def duplicates(corpus: Corpus | PublishedCorpus, sizes: np.ndarray) -> dict[str, Any]:
    """Rows whose ``blended`` cell equals that of an earlier row, byte for byte.

    sizes: from ``cell_bytes``. Only cells of equal length and with equal ends are read.
    """
    likely = _repeated(sizes[:, LAYERS.index(BLENDED)])
    if likely.any() and isinstance(corpus, Corpus):  # mapped: a page of a cell can be read alone
        ends = np.zeros(len(corpus), np.uint64)
        for index, cell in _cells(corpus, [BLENDED], likely):
            end = hashlib.blake2b(cell[-64:], digest_size=8, salt=_length(cell)).digest()
            ends[index] = int.from_bytes(end, "little")
        likely[likely] = _repeated(ends[likely])
    seen: dict[bytes, str] = {}
    pairs: list[list[str]] = []
    if likely.any():
        for index, cell in _cells(corpus, [BLENDED], likely):
            id = corpus.row(index, ["id"])["id"]
            first = seen.setdefault(hashlib.sha256(cell).digest(), id)
            if first != id:
                pairs.append([first, id])
    return {"rows": len(pairs), "pairs": pairs[:20]}


def _cells(
    corpus: Corpus | PublishedCorpus, column: list[str], wanted: np.ndarray
) -> Iterator[tuple[int, memoryview]]:
    """The cells of a column in the rows that are ``wanted`` (bool), with their places."""
    first = 0
    for batch in read_batches(corpus, column):
        for place in np.flatnonzero(wanted[first : first + batch.num_rows]).tolist():
            buffer = batch.column(0)[place].as_buffer()
            if buffer is not None:
                yield first + place, memoryview(buffer)
        first += batch.num_rows


def _length(cell: memoryview) -> bytes:
    return len(cell).to_bytes(8, "little")


def _repeated(values: np.ndarray) -> np.ndarray:
    """bool: whether the value at a place is there more than once."""
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(np.diff(values[order]) == 0)
    found = np.zeros(len(values), bool)
    found[order[same]] = found[order[same + 1]] = True
    return found


def plain_rows(array: np.ndarray) -> Iterator[Any]:
    """The rows of an array as Python values; few are made ahead."""
    return (row for n in range(0, len(array), AHEAD) for row in array[n : n + AHEAD].tolist())


def _distribution(values: Values) -> dict[str, float]:
    """Percentiles of more than 262,144 values are those of an even part of them."""
    array = np.asarray(values.kept, np.float64)
    points = np.percentile(array, PERCENTILES)
    return {
        "count": values.count,
        "mean": float(array.mean()) if values.step == 1 else values.total / values.count,
        "min": values.least,
        **{f"p{p}": float(v) for p, v in zip(PERCENTILES, points, strict=True)},
        "max": values.greatest,
    }


@dataclass
class _Prompts:
    """Texts of a layer, of which only hashes are kept: 8 bytes a clip."""

    hashes: array[int] = field(default_factory=lambda: array("Q"))
    empty: int = 0
    letters: int = 0

    def add(self, text: str) -> None:
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        self.hashes.append(int.from_bytes(digest, "little"))
        self.empty += not text
        self.letters += len(text)

    def plain(self) -> dict[str, Any]:
        total = len(self.hashes)
        distinct = len(np.unique(np.asarray(self.hashes, np.uint64))) - bool(self.empty)
        mean = round(self.letters / total, 1) if total else 0.0
        return {"empty": self.empty, "distinct": distinct, "mean_letters": mean}


def _rejected(corpus: Corpus | PublishedCorpus) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    if (table := corpus.rejected_table()) is not None:
        for batch in read_batches(table, ("stage", "reason")):
            reasons.update(general_reason(row["stage"], row["reason"]) for row in batch.to_pylist())
    return {"rows": sum(reasons.values()), "reasons": dict(reasons.most_common(50))}
