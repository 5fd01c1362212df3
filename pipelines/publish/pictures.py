"""The scores of a corpus as one picture: a histogram each, with the limits of the quality gate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from layerflow.corpus.scores import SCORES
from layerflow.corpus.stats import Values, scores_of
from layerflow.media.cells import encode_png
from pipelines.view.page import histogram

GATE = "standard"
COLUMNS, WIDTH, HEIGHT, MARGIN, BARS = 3, 300, 130, 14, 70
PAPER, INK, FAINT, BAR, LIMIT = (255, 255, 255), (26, 29, 34), (96, 105, 118), (90, 130, 190), (
    200, 60, 30,
)  # fmt: skip


def score_picture(batches: Iterable[pa.RecordBatch]) -> bytes:
    """A PNG of the scores in batches of a ``quality`` column, in the order of ``SCORES``; empty
    bytes where there is none. Bars are in 24 bins over the 0.5 to 99.5 percentile, of more than
    262,144 clips of an even part of them."""
    values = {score.name: Values() for score in SCORES}
    for batch in batches:
        for name, found in scores_of(batch).items():
            if name in values:
                values[name].extend(found[np.isfinite(found)])
    shown = [score for score in SCORES if values[score.name].count]
    if not shown:
        return b""
    lines = -(-len(shown) // COLUMNS)
    size = COLUMNS * WIDTH + MARGIN, lines * HEIGHT + MARGIN
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    for place, score in enumerate(shown):
        corner = MARGIN + place % COLUMNS * WIDTH, MARGIN + place // COLUMNS * HEIGHT
        known = values[score.name]
        _panel(draw, corner, score.name, known, histogram(known.kept), score.limits(GATE) or ())
    return encode_png(np.asarray(image))


def _panel(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    name: str,
    values: Values,
    shape: Mapping[str, Any],
    limits: Sequence[float],
) -> None:
    x, y = corner
    width, font = WIDTH - MARGIN, ImageFont.load_default(12)
    low, high, bins = shape["low"], shape["high"], shape["bins"]
    draw.text((x, y), f"{name}  ({values.count} clips)", fill=INK, font=font)
    bottom, step = y + 20 + BARS, width / len(bins)
    for number, count in enumerate(bins):
        if count:
            top = bottom - max(1, round(BARS * count / max(bins)))
            left, right = (round(x + n * step) for n in (number, number + 1))
            draw.rectangle((left, top, right - 2, bottom), fill=BAR)
    draw.line((x, bottom + 1, x + width, bottom + 1), fill=FAINT)
    for limit in limits:
        if low <= limit <= high:
            at = x + (limit - low) / (high - low) * width
            draw.line((at, y + 16, at, bottom), fill=LIMIT)
    most = f"{high:.3g}"
    draw.text((x, bottom + 3), f"{low:.3g}", fill=FAINT, font=font)
    draw.text((x + width - font.getlength(most), bottom + 3), most, fill=FAINT, font=font)
