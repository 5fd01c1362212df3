"""The ``preview`` configuration: one small mosaic a clip that the Hub's viewer plays.

``blended | foreground on checkerboard`` over ``alpha | background``, H.264 4:2:0 with its index in
front, beside the prompts, the source and the scores as plain columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from layerflow.clip import LAYERS, PROMPTED, LayeredClip
from layerflow.corpus.row_check import sound_clip
from layerflow.corpus.table import Corpus
from layerflow.locations import clean_uri
from layerflow.media.cells import MediaError, encode_preview
from layerflow.media.contact_sheet import four_up
from layerflow.media.sandbox import contained_map
from pipelines.publish.tables import MEDIA

PANEL_HEIGHT = 240
FORMAT_VERSION = 1
CONTENT = 16  # digits of ``content_of``
SMALL = frozenset(
    {"id", "kind", "num_frames", "height", "width", "fps", "origin", "quality"}
    | {f"{layer}_prompt" for layer in PROMPTED}
)
"""The columns of a corpus that its preview shows."""


def mosaic(clip: LayeredClip) -> bytes:
    """MP4 of ``four_up``, a panel at most 240 pixels high; a still stands for one second."""
    frames = four_up(clip)
    height, width = frames.shape[1:3]
    scale = min(1.0, 2 * PANEL_HEIGHT / height)
    size = round(width * scale), round(height * scale)
    small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    if len(small) == 1:
        small = np.repeat(small, max(2, round(clip.fps)), axis=0)
    return encode_preview(small, clip.fps, crf=26)


def mosaic_maker(path: Path) -> Callable[[bytes], bytes]:
    """A handler for ``layerflow.media.sandbox``: a row's index in, ``content_of`` it and its mosaic
    out."""
    corpus = Corpus.open(path)

    def make(request: bytes) -> bytes:
        index = json.loads(request)
        row = corpus.row(index)
        return content_of(row).encode() + mosaic(sound_clip(row, index))

    return make


def content_of(row: Mapping[str, Any]) -> str:
    """16 hex digits of what a mosaic is made of: the media cells of a corpus row, and its time."""
    about = [FORMAT_VERSION, PANEL_HEIGHT, row["kind"], row["fps"], row["num_frames"]]
    digest = hashlib.sha256(json.dumps(about).encode())
    for layer in LAYERS:
        digest.update(hashlib.sha256(row[layer] or b"").digest())
    return digest.hexdigest()[:CONTENT]


def preview_schema(scores: Sequence[str]) -> pa.Schema:
    """Columns of the preview table; one float column per score."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("kind", pa.string()),
            ("preview", MEDIA),
            *((f"{layer}_prompt", pa.string()) for layer in PROMPTED),
            ("source", pa.string()),
            ("licence", pa.string()),
            *((name, pa.int32()) for name in ("num_frames", "height", "width")),
            ("fps", pa.float32()),
            ("content", pa.string()),
            *((name, pa.float32()) for name in scores),
        ]
    )


def preview_features(schema: pa.Schema) -> Any:
    """The ``datasets.Features`` of the preview table."""
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    features["preview"] = datasets.Video(decode=False)
    return features


class OldPreviews:
    """The rows of a preview file of an earlier version: what they show, and the mosaics."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        self._places: dict[str, tuple[int, int, str]] = {}
        self._last: tuple[int, pa.Table] | None = None
        if {"id", "content", "preview"} <= set(self._file.schema_arrow.names):
            for group in range(self._file.num_row_groups):
                rows = self._file.read_row_group(group, columns=["id", "content"]).to_pylist()
                for place, row in enumerate(rows):
                    self._places[row["id"]] = group, place, row["content"]

    def shows(self, row: Mapping[str, Any]) -> bool:
        """Whether the mosaic of a corpus row is there: of the same clip and the same media."""
        return row["id"] in self._places and self._places[row["id"]][2] == content_of(row)

    def take(self, id: str) -> tuple[str, bytes]:
        """``content_of`` a row that ``shows``, and its mosaic."""
        group, place, content = self._places[id]
        if self._last is None or self._last[0] != group:
            self._last = group, self._file.read_row_group(group, columns=["preview"])
        return content, self._last[1].column("preview")[place].as_py()["bytes"]


def preview_batches(
    corpus: Corpus,
    indices: Sequence[int],
    schema: pa.Schema,
    workers: int,
    old: OldPreviews | None = None,
) -> Iterator[pa.RecordBatch]:
    """Rows of the preview table for some rows of the corpus, in order.

    old: an earlier version of the file; what it shows is not encoded again. Raises ValueError that
    names the row when one does not decode.
    """
    shown: set[int] = set()
    if old is not None:
        seen = ["id", "kind", "fps", "num_frames", *LAYERS]
        shown = {index for index in indices if old.shows(corpus.row(index, seen))}
    requests = [json.dumps(index).encode() for index in indices if index not in shown]
    answers = contained_map(mosaic_maker, Path(corpus.address), requests, workers)
    small = [name for name in corpus.schema.names if name in SMALL]
    for index in indices:
        row = corpus.row(index, small)
        if old is not None and index in shown:
            content, media = old.take(row["id"])
        else:
            answer = next(answers)
            if isinstance(answer, MediaError):
                raise ValueError(
                    f"row {index} (id {row['id']}) has no preview: {answer}; "
                    "`layerflow validate` lists the rows to leave out"
                )
            content, media = answer[:CONTENT].decode(), answer[CONTENT:]
        yield pa.RecordBatch.from_pylist([_row(row, content, media, schema)], schema=schema)


def _row(row: dict[str, Any], content: str, media: bytes, schema: pa.Schema) -> dict[str, Any]:
    own = {
        "preview": {"bytes": media, "path": f"{row['id']}.mp4"},
        "content": content,
        "source": clean_uri(row["origin"]["uri"]),
        "licence": row["origin"]["licence"],
    }
    flat = {**row["quality"], **row, **own}
    return {name: flat.get(name) for name in schema.names}
