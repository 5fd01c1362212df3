"""The corpus: a folder of Arrow shards of layered clips that ``datasets.load_from_disk`` opens.

One row is one clip. Media cells are self-describing files (MP4, FFV1 in Matroska, PNG) in
``large_binary`` columns. Shards are Arrow IPC *streams* of small record batches, memory-mapped by
the reader; ``rejected/`` is a second table in the same form.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.clip import ALPHA, LAYERS, PROMPTED, LayeredClip
from layerflow.corpus.changes.overlay import Overlay
from layerflow.corpus.columns import EXTENDED_SCHEMA as EXTENDED_SCHEMA
from layerflow.corpus.columns import EXTRAS as EXTRAS
from layerflow.corpus.columns import REJECTED_SCHEMA as REJECTED_SCHEMA
from layerflow.corpus.columns import SCHEMA
from layerflow.corpus.log import (
    REJECTED,
    VERSIONS,
    Shard,
    Version,
    newest,
    numbers,
    read,
    refuse_purged,
    split_address,
)
from layerflow.corpus.scores import QUALITY_FIELDS
from layerflow.corpus.shards import ShardReader, table_files
from layerflow.corpus.store import Store, in_object_store
from layerflow.locations import clean_uri, printable, without_secrets
from layerflow.media.cells import (
    Bounds,
    decode_layer,
    encode_alpha,
    encode_color,
    encode_png,
)

FORMAT_VERSION = 1
MAX_OPEN = 64  # shards of a table that stay open


def clip_id(kind: str, sources: Sequence[str], span: Sequence[float | int], recipe: str) -> str:
    """16 hex digits of sha256(kind, content hashes of the sources, span or draw, recipe)."""
    parts = [kind, list(sources), [round(float(s), 4) for s in span], recipe]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def origin(
    uri: str,
    sha256: str,
    *,
    start: float = 0.0,
    end: float = 0.0,
    licence: str | None = None,
    attribution: str | None = None,
    parents: Sequence[str] = (),
) -> dict[str, Any]:
    """An ``origin`` cell. ``uri`` is relative to the input root, or remote; never absolute.

    URLs go on record without credentials and signatures.
    """
    if uri.startswith("/"):
        raise ValueError(f"origin uri must be relative or remote, not {uri!r}")
    return {
        "uri": clean_uri(uri),
        "sha256": sha256,
        "start": start,
        "end": end,
        "licence": licence,
        "attribution": attribution,
        "parents": [clean_uri(parent) for parent in parents],
    }


def quality_cell(scores: Mapping[str, float] | None) -> dict[str, float | None]:
    """A full ``quality`` struct from some scores. Raises ValueError for an unknown name."""
    scores = scores or {}
    unknown = set(scores) - set(QUALITY_FIELDS)
    if unknown:
        raise ValueError(f"unknown quality scores {sorted(unknown)}")
    return {name: float(scores[name]) if name in scores else None for name in QUALITY_FIELDS}


def encode_row(
    clip: LayeredClip,
    *,
    id: str,
    origin: Mapping[str, Any],
    quality: Mapping[str, float] | None,
    recipe: str,
    crf: int = 10,
) -> dict[str, Any]:
    """A corpus row: the layers encoded as media cells, and all that is known of the clip."""
    if clip.kind == "image":
        media = {layer: encode_png(clip.layer(layer)[0]) for layer in LAYERS}
    else:
        media = {
            layer: encode_alpha(clip.alpha, clip.fps)
            if layer == ALPHA
            else encode_color(clip.layer(layer), clip.fps, crf=crf)
            for layer in LAYERS
        }
    height, width = clip.size
    return {
        "id": id,
        "kind": clip.kind,
        **media,
        **{f"{layer}_prompt": clip.prompts.get(layer, "") for layer in PROMPTED},
        "num_frames": clip.num_frames,
        "height": height,
        "width": width,
        "fps": float(clip.fps),
        "alpha_kind": clip.alpha_kind,
        "background_kind": clip.background_kind,
        "origin": dict(origin),
        "quality": quality_cell(quality),
        "recipe": recipe,
    }


def decode_row(row: Mapping[str, Any], keep: Sequence[int] | None = None) -> LayeredClip:
    """The clip of a corpus row, decoded in this process: for rows that are trusted, and in the
    child process of ``layerflow.corpus.row_cells``. keep: which frames, in that order; None: all.

    Raises MediaError or ValueError for a damaged one, and for cells of another size or length
    than the row says.
    """
    bounds = Bounds.of(row)
    return LayeredClip(
        **{layer: decode_layer(layer, row[layer] or b"", bounds, keep) for layer in LAYERS},
        prompts={layer: row[f"{layer}_prompt"] for layer in PROMPTED},
        fps=row["fps"],
        kind=row["kind"],
        alpha_kind=row["alpha_kind"],
        background_kind=row["background_kind"],
    )


def rejected_row(
    uri: str,
    step: str,
    reason: str,
    *,
    kind: str,
    recipe: str,
    start: float | None = None,
    end: float | None = None,
    quality: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A row of the rejected table: what was not taken, at which step, and why.

    URLs go on record without credentials and signatures.
    """
    return {
        "uri": clean_uri(uri),
        "kind": kind,
        "stage": step,
        "reason": without_secrets(printable(reason)),
        "start": start,
        "end": end,
        "quality": quality_cell(quality),
        "recipe": recipe,
    }


Names = Sequence[str] | None
Chunk = Callable[[Names], pa.RecordBatch]


@dataclass(frozen=True)
class Table:
    """Arrow stream shards in one folder, opened when they are needed; random access by row.

    path: a local folder, or a URL of an object store, which is read by ranges. named: the shards;
    None: those that the local ``state.json`` names. Not for use by several threads at a time.
    """

    path: Path | str
    named: tuple[Shard, ...] | None = field(default=None, repr=False)

    @cached_property
    def store(self) -> Store:
        """The folder."""
        return Store(self.path)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The shards in order."""
        if self.named is not None:
            return self.named
        return tuple(Shard(path.name) for path in table_files(Path(self.path)))

    @cached_property
    def _opened(self) -> OrderedDict[int, ShardReader]:
        return OrderedDict()

    @cached_property
    def _last(self) -> dict[Any, pa.RecordBatch]:
        return {}

    def _reader(self, number: int) -> ShardReader:
        """A shard. Raises ValueError when its columns or its rows are not as they should be."""
        found = self._opened.pop(number, None)
        if found is None:
            shard = self.shards[number]
            found = ShardReader(self.store, shard.file)
            if number and found.schema != self.schema:
                raise ValueError(f"{self.path} cannot be read: its shards have different columns")
            if shard.rows is not None and shard.rows != found.rows:
                where = self.store.location(shard.file)
                text = f"it holds {found.rows} rows, not {shard.rows}"
                raise ValueError(f"{where} cannot be read: {text}")
            if len(self._opened) >= MAX_OPEN:
                self._opened.popitem(last=False)
        self._opened[number] = found
        return found

    @cached_property
    def _ends(self) -> list[int]:
        """The number of rows up to the end of each shard."""
        rows = (
            self._reader(number).rows if shard.rows is None else shard.rows
            for number, shard in enumerate(self.shards)
        )
        return list(accumulate(rows))

    def shard(self, number: int) -> ShardReader:
        """One shard by its place."""
        return self._reader(number)

    def files(self) -> list[Path]:
        """The Arrow shards on this disk, in order."""
        return [Path(self.path) / shard.file for shard in self.shards]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @cached_property
    def schema(self) -> pa.Schema:
        return self._reader(0).schema

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """One row as Python values; ``columns`` leaves the others where they are."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        reader = self._reader(number)
        batch, place = reader.place(index - (self._ends[number - 1] if number else 0))
        key = (number, batch, None if columns is None else tuple(columns))
        if key not in self._last:
            held = self._batch(reader, batch, columns)
            self._last.clear()
            self._last[key] = held
        return dict(self._last[key].slice(place, 1).to_pylist()[0])

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        for batch in self.batches(columns):
            for place in range(batch.num_rows):
                yield batch.slice(place, 1).to_pylist()[0]

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All record batches in order; ``columns`` leaves the others where they are."""
        return (chunk(columns) for chunk in self.chunks())

    def chunks(self) -> Iterator[Chunk]:
        """Record batches in order, each a function from column names (None: all) to the batch."""
        for number in range(len(self.shards)):
            reader = self._reader(number)
            for batch in range(reader.count):
                yield partial(self._batch, reader, batch)

    def _batch(self, reader: ShardReader, number: int, columns: Names) -> pa.RecordBatch:
        return reader.batch(number, columns)


@dataclass(frozen=True)
class Corpus(Table):
    """A finished corpus, on this disk or in an object store."""

    version: Version | None = field(default=None, repr=False)
    """What the log says of the version that this is; None without a log."""

    @classmethod
    def open(cls, path: str | Path, version: int | None = None) -> Corpus:
        """A corpus at a version, by default the newest; ``CORPUS@v3`` names one, too.

        Raises ValueError when there is no corpus, no such version, or another schema.
        """
        path, named = split_address(path)
        corpus = cls._at(path if in_object_store(path) else Path(path), version or named)
        missing = set(SCHEMA.names) - set(corpus.schema.names)
        if missing:
            raise ValueError(f"{path} is not a corpus of this version: no column {sorted(missing)}")
        for column in SCHEMA:
            found = corpus.schema.field(column.name).type
            if pa.types.is_primitive(column.type) and found != column.type:
                raise ValueError(f"{path}: the column {column.name} is {found}, not {column.type}")
        return corpus

    @classmethod
    def _at(cls, path: str | Path, number: int | None) -> Corpus:
        store = Store(path)
        found = newest(store) if number is None else None
        if number is not None and (number > 1 or numbers(store)):
            found = read(store, number)
            refuse_purged(store, found)
        if found is None and store.local is None:
            raise ValueError(f"{store} holds no corpus (no {VERSIONS}/)")
        return cls(path) if found is None else cls(path, found.shards, found)

    @property
    def address(self) -> str:
        """The corpus at just this version, for ``open``."""
        return str(self.path) if self.version is None else f"{self.path}@v{self.version.number}"

    def identity(self) -> str:
        """Changes when the rows do."""
        if self.version is None:
            return (Path(self.path) / "state.json").read_text()
        return json.dumps([s.plain() for s in (*self.shards, *self.version.overlay)])

    @cached_property
    def overlay(self) -> Overlay:
        """The values that were corrected since the shards were written."""
        return Overlay.read(self.store, self.version.overlay if self.version else ())

    def _batch(self, reader: ShardReader, number: int, columns: Names) -> pa.RecordBatch:
        if not self.overlay.touches(columns):
            return reader.batch(number, columns)
        if columns is None or "id" in columns:
            return self.overlay.corrected(reader.batch(number, columns))
        found = self.overlay.corrected(reader.batch(number, ["id", *columns]))
        return found.select(list(columns))

    def clip(self, index: int) -> LayeredClip:
        return decode_row(self.row(index))

    def __getitem__(self, index: int | slice) -> Any:
        """``corpus[-1]``: a clip; ``corpus[2:5]``: a list of clips."""
        if isinstance(index, slice):
            return [self.clip(place) for place in range(*index.indices(len(self)))]
        return self.clip(index + len(self) if index < 0 else index)

    def __iter__(self) -> Iterator[LayeredClip]:
        return (self.clip(place) for place in range(len(self)))

    def _repr_html_(self) -> str:
        from layerflow.corpus.notebook import as_html

        return as_html(self)

    def ids(self) -> list[str]:
        return [id for batch in self.batches(["id"]) for id in batch.column("id").to_pylist()]

    @property
    def info(self) -> dict[str, Any]:
        """``corpus.json``: how the corpus was made (kind, recipe, resolved options, counts)."""
        if self.version is not None:
            return dict(self.version.info)
        path = Path(self.path) / "corpus.json"
        try:
            found = json.loads(path.read_text()) if path.is_file() else {}
        except RecursionError as error:
            raise ValueError(f"{path} is nested too deeply") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} holds {type(found).__name__}, not an object")
        return found

    def rejected_table(self) -> Table | None:
        """The rejected table; None where there is none."""
        folder = self.store.below(REJECTED)
        if self.version is not None:
            shards = self.version.rejected
            return Table(folder.where, shards) if shards else None
        there = folder.local is not None and (folder.local / "state.json").is_file()
        return Table(folder.where) if there else None

    def rejected(self) -> list[dict[str, Any]]:
        table = self.rejected_table()
        return [] if table is None else list(table.rows())
