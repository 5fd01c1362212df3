"""The ``preview`` configuration: one small mosaic a clip that the Hub's viewer plays.

``blended | foreground on checkerboard`` over ``alpha | background``, H.264 4:2:0 with its index in
front, beside the prompts, the source and the scores as plain columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from layerflow.clip import PROMPTED, LayeredClip
from layerflow.corpus.row_check import sound_clip
from layerflow.corpus.stats import small_rows
from layerflow.corpus.table import Corpus
from layerflow.locations import clean_uri
from layerflow.media.cells import MediaError, encode_preview
from layerflow.media.contact_sheet import four_up
from layerflow.media.sandbox import contained_map
from pipelines.publish.tables import MEDIA

PANEL_HEIGHT = 240
PREVIEWS_PER_SHARD = 2000


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
    """A handler for ``layerflow.media.sandbox``: the index of a row in, its mosaic out."""
    corpus = Corpus.open(path)

    def make(request: bytes) -> bytes:
        index = json.loads(request)
        return mosaic(sound_clip(corpus.row(index), index))

    return make


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
            *((name, pa.float32()) for name in scores),
        ]
    )


def preview_features(schema: pa.Schema) -> Any:
    """The ``datasets.Features`` of the preview table."""
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    features["preview"] = datasets.Video(decode=False)
    return features


def preview_batches(
    corpus: Corpus, indices: Sequence[int], schema: pa.Schema, workers: int
) -> Iterator[pa.RecordBatch]:
    """Rows of the preview table for some rows of the corpus, in order.

    Raises ValueError that names the row when one does not decode.
    """
    wanted = set(indices)
    rows = (row for index, row in enumerate(small_rows(corpus)) if index in wanted)
    requests = [json.dumps(index).encode() for index in indices]
    answers = contained_map(mosaic_maker, Path(corpus.address), requests, workers)
    for index, row, media in zip(indices, rows, answers, strict=True):
        if isinstance(media, MediaError):
            raise ValueError(
                f"row {index} (id {row['id']}) has no preview: {media}; "
                "`layerflow validate` lists the rows to leave out"
            )
        yield pa.RecordBatch.from_pylist([_row(row, media, schema)], schema=schema)


def _row(row: dict[str, Any], media: bytes, schema: pa.Schema) -> dict[str, Any]:
    own = {
        "preview": {"bytes": media, "path": f"{row['id']}.mp4"},
        "source": clean_uri(row["origin"]["uri"]),
        "licence": row["origin"]["licence"],
    }
    flat = {**row["quality"], **row, **own}
    return {name: flat.get(name) for name in schema.names}
