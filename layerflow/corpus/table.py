"""The corpus: a folder of Arrow shards of layered clips that ``datasets.load_from_disk`` opens.

One row is one clip. Media cells are self-describing files (MP4, FFV1 in Matroska, PNG) in
``large_binary`` columns. Shards are Arrow IPC *streams* of small record batches, memory-mapped by
the reader; ``rejected/`` is a second table in the same form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.clip import ALPHA, LAYERS, PROMPTED, LayeredClip
from layerflow.corpus.columns import EXTENDED_SCHEMA as EXTENDED_SCHEMA
from layerflow.corpus.columns import EXTRAS as EXTRAS
from layerflow.corpus.columns import QUALITY, SCHEMA
from layerflow.corpus.scores import QUALITY_FIELDS
from layerflow.corpus.shards import read_schema, read_shard, table_files
from layerflow.locations import clean_uri, printable, without_secrets
from layerflow.media.cells import (
    Bounds,
    decode_layer,
    encode_alpha,
    encode_color,
    encode_png,
)

FORMAT_VERSION = 1

REJECTED_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("quality", QUALITY),
        ("recipe", pa.string()),
    ]
)


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


@dataclass(frozen=True)
class Table:
    """Arrow stream shards in one folder, memory-mapped; random access by row."""

    path: Path

    @cached_property
    def _table(self) -> pa.Table:
        files = self.files()
        schema = read_schema(files[0])
        batches = [batch for file in files for batch in read_shard(file)]
        if any(batch.schema != schema for batch in batches):
            raise ValueError(f"{self.path} cannot be read: its shards have different columns")
        return pa.Table.from_batches(batches, schema=schema)

    def files(self) -> list[Path]:
        """The Arrow shards on disk, in order; see ``table_files``."""
        return table_files(self.path)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def schema(self) -> pa.Schema:
        return self._table.schema

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """One row as Python values; ``columns`` leaves the others untouched on disk."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        table = self._table if columns is None else self._table.select(list(columns))
        return table.slice(index, 1).to_pylist()[0]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        return (self.row(index, columns) for index in range(len(self)))


@dataclass(frozen=True)
class Corpus(Table):
    """A finished corpus on disk."""

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Raises ValueError when the folder holds no corpus or another schema."""
        corpus = cls(Path(path))
        missing = set(SCHEMA.names) - set(corpus.schema.names)
        if missing:
            raise ValueError(f"{path} is not a corpus of this version: no column {sorted(missing)}")
        for field in SCHEMA:
            found = corpus.schema.field(field.name).type
            if pa.types.is_primitive(field.type) and found != field.type:
                raise ValueError(f"{path}: the column {field.name} is {found}, not {field.type}")
        return corpus

    def clip(self, index: int) -> LayeredClip:
        return decode_row(self.row(index))

    def ids(self) -> list[str]:
        return list(self._table.column("id").to_pylist())

    @property
    def info(self) -> dict[str, Any]:
        """``corpus.json``: how the corpus was made (kind, recipe, resolved options, counts)."""
        path = self.path / "corpus.json"
        try:
            found = json.loads(path.read_text()) if path.is_file() else {}
        except RecursionError as error:
            raise ValueError(f"{path} is nested too deeply") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} holds {type(found).__name__}, not an object")
        return found

    def rejected(self) -> list[dict[str, Any]]:
        folder = self.path / "rejected"
        return list(Table(folder).rows()) if (folder / "state.json").is_file() else []
