"""The latents store: what the autoencoder and the text encoder make of a corpus.

A folder with::

    clips/data-*.arrow      one row a clip: moments of each layer, kind, size, prompt keys
    prompts/data-*.arrow    one row a distinct prompt: its embedding
    fingerprint.json        which weights, size, frame rule and format made all this
    index.json              the shards, in order
    *.places.arrow          where each row lies, for reading by range (``corpus.remote``)

A store of ``rgba`` says nothing of layers: every row has the four. One of another set has its name
as ``layers`` of the fingerprint, a column of each of its layers and of each of its prompts, and
``foregrounds``, how many of them a row has; layers of absent ones are null. Both tables have
sidecars by which ``datasets.load_from_disk`` opens them.

Moments are raw little-endian ``[2C, f, h, w]`` arrays (mean, then log-variance; -30 where there is
none), already in the scale that the transformer sees. Shards are Arrow IPC streams, memory-mapped,
so that opening costs nothing and any row is read on its own.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from layerflow.corpus.latent_rows import CLIPS as CLIPS
from layerflow.corpus.latent_rows import (
    DTYPES,
    PROMPTS,
    clips_schema,
    stored_layers,
)
from layerflow.corpus.latent_rows import NO_LOGVAR as NO_LOGVAR
from layerflow.corpus.latent_rows import clip_row as clip_row
from layerflow.corpus.latent_rows import prompt_key as prompt_key
from layerflow.corpus.latent_rows import prompt_row as prompt_row
from layerflow.corpus.remote.places import write_places
from layerflow.corpus.shards import read_shard
from layerflow.corpus.store import Store
from layerflow.corpus.writer import SHARD_BYTES, described, write_shards, write_sidecars
from layerflow.documents import read_json
from layerflow.files import new_folder, write_json
from layerflow.layer_set import LayerSet, prompted_of
from layerflow.media.known import KNOWN

FORMAT_VERSION = 1
INDEX = "index.json"
AXES = ("channels", "frames", "height", "width")
BATCH_BYTES = 1 << 20  # a record batch of many small rows or of one large row


class LatentsWriter:
    """Writes a latents folder beside its place and moves it there when it is complete.

    ::

        with LatentsWriter(path, fingerprint) as writer:
            writer.clips(rows)        # rows by clip_row, of the layers that the fingerprint says
            writer.prompts(rows)      # rows by prompt_row

    Rows may be generators: memory holds one record batch. Leaving the block by an exception
    leaves whatever was at `path` as it was. What else is written into `folder` comes along.
    """

    def __init__(self, path: str | Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = self.folder = Path(path)
        self._fingerprint = dict(fingerprint)
        self._index: dict[str, list[str]] = {"clips": [], "prompts": []}

    def __enter__(self) -> LatentsWriter:
        self._filling = self._fill()
        return self._filling.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._filling.__exit__(*error)

    @contextmanager
    def _fill(self) -> Iterator[LatentsWriter]:
        with new_folder(self.path, replace=True) as self.folder:
            yield self
            clips = clips_schema(stored_layers(self._fingerprint))
            write_places(self.folder, "clips", self._index["clips"], clips)
            write_places(self.folder, "prompts", self._index["prompts"], PROMPTS)
            write_json(self.folder / INDEX, self._index)
            write_json(self.folder / "fingerprint.json", self._fingerprint)

    def clips(self, rows: Iterable[Mapping[str, Any]]) -> int:
        return self._table("clips", rows, clips_schema(stored_layers(self._fingerprint)))

    def prompts(self, rows: Iterable[Mapping[str, Any]]) -> int:
        return self._table("prompts", rows, PROMPTS)

    def _table(self, name: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> int:
        (self.folder / name).mkdir(exist_ok=True)

        def place(number: int) -> Path:
            return self.folder / name / f"data-{number:05d}.arrow"

        shards, count = write_shards(row_batches(rows, schema), schema, place, SHARD_BYTES)
        names = [place(number).name for number in range(shards)]
        self._index[name] = [f"{name}/{each}" for each in names]
        if names:
            store = Store(self.folder / name)
            write_sidecars(self.folder / name, schema, [described(store, each) for each in names])
        return count


def is_latents(path: str | Path) -> bool:
    """Whether a folder on this disk says that it holds latents."""
    return "://" not in str(path) and (Path(path) / INDEX).is_file()


def row_batches(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows as record batches of about `BATCH_BYTES`."""
    waiting: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, bytes))
        if size >= BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(waiting, schema=schema)
            waiting, size = [], 0
    if waiting:
        yield pa.RecordBatch.from_pylist(waiting, schema=schema)


def _misfit(batch: pa.RecordBatch, layers: LayerSet) -> int | None:
    """The first row of `clips/` whose layers are not as long as its shape and dtype say, or are not
    those of its number of foregrounds."""
    axes = (batch.column(f"latent_{axis}") for axis in AXES)
    shapes = zip(*(axis.to_pylist() for axis in axes), strict=True)
    lengths = [pc.binary_length(batch.column(layer)).to_pylist() for layer in layers.layers]
    kinds, counts = batch.column("dtype").to_pylist(), _counts(batch)
    masks = pc.binary_length(batch.column(KNOWN)).to_pylist()
    about = zip(shapes, kinds, counts, masks, *lengths, strict=True)
    for row, (shape, kind, count, mask, *sizes) in enumerate(about):
        if kind not in DTYPES or not all(shape) or min(shape) < 1:
            return row
        if count not in range(1, len(layers.foregrounds) + 1):
            return row
        length = 2 * math.prod(shape) * DTYPES[kind].itemsize
        present = layers.with_foregrounds(count)
        if mask is not None and mask != len(present) * math.prod(shape[1:]):
            return row
        if sizes != [length if layer in present else None for layer in layers.layers]:
            return row
    return None


def _counts(batch: pa.RecordBatch) -> list[Any]:
    """How many foregrounds each row has."""
    if "foregrounds" not in batch.schema.names:
        return [1] * batch.num_rows
    return list(batch.column("foregrounds").to_pylist())


class Opened:
    """A record batch as numpy sees it: small columns as lists, media as views of the file.

    Arrow's own cell access takes several microseconds a cell, which at tiny sizes is most of the
    time that a row takes.
    """

    def __init__(self, batch: pa.RecordBatch, layers: LayerSet) -> None:
        def values(name: str) -> list[Any]:
            return list(batch.column(name).to_pylist())

        names = ("id", "kind", "origin_group", "fps")
        self.columns = {name: values(name) for name in names}
        axes = (values(f"latent_{axis}") for axis in AXES)
        self.shapes = [(2 * c, f, h, w) for c, f, h, w in zip(*axes, strict=True)]
        self.layers = [layers.with_foregrounds(count) for count in _counts(batch)]
        self.prompts = {layer: values(f"{layer}_prompt") for layer in layers.prompted}
        self._dtypes = [DTYPES[name] for name in values("dtype")]
        self._media = {}
        for layer in layers.layers:
            _, offsets, data = batch.column(layer).buffers()
            starts = np.frombuffer(offsets, np.int64) if batch.num_rows else np.zeros(1, np.int64)
            self._media[layer] = starts[batch.column(layer).offset :], data
        self._known = batch.column(KNOWN)

    def layer(self, name: str, row: int) -> NDArray[np.floating]:
        """A view of one layer's values, flat."""
        offsets, data = self._media[name]
        kind, start = self._dtypes[row], int(offsets[row])
        return np.frombuffer(data, kind, (int(offsets[row + 1]) - start) // kind.itemsize, start)

    def known(self, row: int) -> NDArray[np.bool_] | None:
        """What is known of a row's latents, bool ``[n, f, h, w]``; None: all."""
        cell, shape = self._known[row].as_buffer(), (len(self.layers[row]), *self.shapes[row][1:])
        return None if cell is None else np.frombuffer(cell, np.uint8).reshape(shape) != 0


def checked(
    batches: list[pa.RecordBatch], schema: pa.Schema, layers: LayerSet, path: Any
) -> list[pa.RecordBatch]:
    """Record batches of ``path`` with the columns that they should have. ValueError for others, and
    for clips that do not fit their shape."""
    for i, batch in enumerate(batches):
        if schema is not PROMPTS and KNOWN not in batch.schema.names:  # made before there was
            nulls = pa.nulls(batch.num_rows, schema.types[-1])
            batches[i] = batch = batch.append_column(KNOWN, nulls)
        if batch.schema.names != schema.names or batch.schema.types != schema.types:
            raise ValueError(f"{path}: other columns than {schema.names}; encode again")
        if schema is PROMPTS:
            continue
        if (row := _misfit(batch, layers)) is not None:
            which = f"the latents of {str(batch.column('id')[row])[:40]!r}"
            raise ValueError(f"{path}: {which} do not fit their shape; encode again")
    return batches


class Latents:
    """A latents folder, read by row: ``len(latents)`` and ``latents.item(i)``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = self._json(INDEX)
        self.fingerprint = self._json("fingerprint.json")
        self._check_version()
        self.layers = stored_layers(self.fingerprint)
        self._clips = self._load(index["clips"], clips_schema(self.layers))
        self._opened: dict[int, Opened] = {}
        self._starts = [0]
        for batch in self._clips:
            self._starts.append(self._starts[-1] + batch.num_rows)
        self._prompts: dict[str, tuple[pa.RecordBatch, int]] = {
            key: (batch, row)
            for batch in self._load(index["prompts"], PROMPTS)
            for row, key in enumerate(batch.column("key").to_pylist())
        }

    @classmethod
    def open(cls, path: str | Path) -> Latents:
        """ValueError when the folder holds no latents, or those of another format version."""
        return cls(path)

    def _check_version(self) -> None:
        version = self.fingerprint.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{self.path} has latents of format {version}, this code reads {FORMAT_VERSION}; "
                "encode the corpus again"
            )

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        if not file.is_file():
            raise ValueError(f"{self.path} holds no latents (no {name}); make them with encode")
        return read_json(file, {"clips": list, "prompts": list} if name == INDEX else None)

    def _load(self, names: Sequence[str], schema: pa.Schema) -> list[pa.RecordBatch]:
        batches: list[pa.RecordBatch] = []
        for name in names:
            parts = Path(name).parts[-2:] if isinstance(name, str) else ()
            if len(parts) < 2 or ".." in parts:  # no path leads out of the store
                raise ValueError(f"{self.path}: {INDEX} names a shard {str(name)[:80]!r}")
            folder, file = parts
            try:
                batches += read_shard(self.path / folder / file)
            except ValueError as error:
                raise ValueError(f"{error}; encode again") from error
        return checked(batches, schema, self.layers, self.path)

    def __len__(self) -> int:
        return self._starts[-1]

    def column(self, name: str) -> list[Any]:
        """One column of `clips/` (not a media one) for all rows."""
        return [value for batch in self._clips for value in batch.column(name).to_pylist()]

    def identity(self) -> str:
        """Hash of what the folder holds: the fingerprint, and every row's id and content."""
        parts = [self.fingerprint, *(self.column(name) for name in ("id", "content", "dtype"))]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def stats(self) -> dict[str, Any]:
        """Rows, their kinds and sizes (height x width x frames, and of what latents), prompts."""
        columns = ("height", "width", "num_frames", *(f"latent_{a}" for a in AXES))
        shapes = Counter(zip(*map(self.column, columns), strict=True))
        return {
            "rows": len(self),
            "layers": self.layers.name,
            "kinds": dict(sorted(Counter(self.column("kind")).items())),
            "sizes": {
                "{}x{}x{}, latents {}x{}x{}x{}".format(*shape): count
                for shape, count in sorted(shapes.items())
            },
            "sources": len(set(self.column("source"))),
            "prompts": len(self._prompts),
            "bytes": sum(file.stat().st_size for file in self.path.rglob("data-*.arrow")),
        }

    def faults(self) -> Iterator[tuple[int, str]]:
        """Row and what is wrong with it, of what opening the folder lets pass."""
        seen: set[str] = set()
        for index, id_ in enumerate(self.column("id")):
            if id_ in seen:
                yield index, f"the id {id_[:64]!r} comes twice"
            seen.add(id_)
            try:
                item = self.item(index)
                faulty = [n for n in ("moments", "prompt_embeds") if not np.isfinite(item[n]).all()]
                yield from ((index, f"{name} are not all finite") for name in faulty)
            except ValueError as error:
                yield index, str(error)

    def prompt_keys(self) -> set[str]:
        return set(self._prompts)

    def prompt_text(self, key: str) -> str:
        """The prefixed text behind a key."""
        if key not in self._prompts:
            raise ValueError(f"{self.path}: prompt {key[:64]!r} is missing; encode again")
        batch, row = self._prompts[key]
        return str(batch.column("text")[row].as_py())

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _batch(self, number: int) -> Opened:
        return self._opened.get(number) or self._opened.setdefault(
            number, Opened(self._clips[number], self.layers)
        )

    def raw(self, index: int) -> dict[str, Any]:
        """Row `index` of `clips/` as written, for copying."""
        number, row = self._find(index)
        return dict(self._clips[number].slice(row, 1).to_pylist()[0])

    def prompt_rows(self) -> Iterator[dict[str, Any]]:
        """All rows of `prompts/` as written, for copying."""
        for batch, row in self._prompts.values():
            yield batch.slice(row, 1).to_pylist()[0]

    def item(self, index: int) -> dict[str, Any]:
        """Row `index`: `id`, `kind`, ..., and

        layers: names of the layers that the row has, in order: of ``rgba`` four
        moments: float32 ``[n, 2C, f, h, w]`` of these
        prompts: of those with a prompt, layer -> key
        prompt_embeds: float32 ``[p, tokens, width]`` of these; zeros where there is no text
        known: bool ``[n, f, h, w]``, what of the moments is known; None: all of them
        """
        number, row = self._find(index)
        batch = self._batch(number)
        shape = batch.shapes[row]
        layers = batch.layers[row]
        moments = np.empty((len(layers), *shape), np.float32)
        for slot, layer in enumerate(layers):
            moments[slot] = batch.layer(layer, row).reshape(shape)
        prompts = {layer: batch.prompts[layer][row] for layer in prompted_of(layers)}
        return {
            **{name: values[row] for name, values in batch.columns.items()},
            "latent_frames": shape[1],
            "layers": layers,
            "moments": moments,
            "known": batch.known(row),
            "prompts": prompts,
            "prompt_embeds": self._embeddings(list(prompts.values())),
        }

    def _embeddings(self, keys: Sequence[str]) -> NDArray[np.float32]:
        tokens, width = self.text_shape
        out = np.zeros((len(keys), tokens, width), np.float32)
        for slot, key in enumerate(keys):
            if not key:
                continue
            if key not in self._prompts:
                raise ValueError(f"{self.path}: prompt {key} is missing; encode again")
            batch, row = self._prompts[key]
            raw = batch.column("embedding")[row].as_buffer()
            kind = DTYPES[batch.column("dtype")[row].as_py()]
            out[slot] = np.frombuffer(raw, kind).reshape(tokens, width)
        return out

    @cached_property
    def text_shape(self) -> tuple[int, int]:
        """Tokens of one prompt and width of one token."""
        for batch, row in self._prompts.values():
            return int(batch.column("tokens")[row].as_py()), int(batch.column("width")[row].as_py())
        shape = self.fingerprint["text_shape"]
        return int(shape[0]), int(shape[1])
