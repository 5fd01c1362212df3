"""Pictures of clips for people: contact sheets and four-up mosaics.

Of a ``LayerStack`` with several foregrounds a sheet shows each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from layerflow.clip import (
    ALPHA,
    BACKGROUND,
    BLENDED,
    FOREGROUND,
    U8,
    LayeredClip,
    checkerboard,
    composite,
)
from layerflow.files import write_bytes
from layerflow.layer_set import matte_of
from layerflow.locations import one_line
from layerflow.media.cells import encode_png
from layerflow.media.layer_stack import LayerStack, stack_of

SHOWN = (BLENDED, FOREGROUND, ALPHA, BACKGROUND)
Shown = LayeredClip | LayerStack
MARGIN, GAP = 8, 2
TEXT_SIZE = 13
LINE_HEIGHT = 17
PAPER, INK, FAINT = (24, 26, 30), (235, 235, 235), (150, 156, 166)


def shown_layer(clip: Shown, name: str) -> U8:
    """One layer as uint8 ``[T, H, W, 3]`` to look at: what has a matte lies on a checkerboard."""
    frames = clip.layer(name)
    if name in _stack(clip).over:
        board = checkerboard(*clip.size, cell=max(8, clip.size[0] // 24))
        return composite(frames, clip.layer(matte_of(name)), np.broadcast_to(board, frames.shape))
    return frames if frames.ndim == 4 else np.repeat(frames[..., None], 3, axis=3)


def _stack(clip: Shown) -> LayerStack:
    return clip if isinstance(clip, LayerStack) else stack_of(clip)


def shown_layers(clips: Sequence[Shown]) -> list[str]:
    """The layers that a sheet of these clips shows, a column each: blended, then all that some of
    them have over the background, each with its matte, then background."""
    over = {name: None for clip in clips for name in _stack(clip).over}
    known = sorted(over, key=lambda name: (name.startswith(FOREGROUND), len(name), name))
    own = [name for layer in known for name in (layer, matte_of(layer))]
    return [BLENDED, *own, BACKGROUND]


def four_up(clip: LayeredClip) -> U8:
    """uint8 ``[T, 2H, 2W, 3]``: blended | foreground on checkerboard over alpha | background."""
    blended, foreground, alpha, background = (shown_layer(clip, name) for name in SHOWN)
    top = np.concatenate([blended, foreground], axis=2)
    bottom = np.concatenate([alpha, background], axis=2)
    return np.concatenate([top, bottom], axis=1)


def describe(clip: Shown, id: str = "", scores: Mapping[str, float | None] | None = None) -> str:
    """Lines of text for a clip: what it is, its scores, its prompts."""
    height, width = clip.size
    facts = f"{clip.kind}, {clip.num_frames} x {height}x{width}, {clip.fps:g} fps"
    known = [f"{name} {value:.4g}" for name, value in (scores or {}).items() if value is not None]
    lines = ["   ".join(part for part in (id, facts, *known) if part)]
    named = _stack(clip).prompted
    prompts = [f"{name}: {clip.prompts[name]}" for name in named if clip.prompts.get(name)]
    return "\n".join([*lines, "   ".join(prompts)] if prompts else lines)


def contact_sheet(
    clips: Sequence[Shown],
    labels: Sequence[str] | None = None,
    *,
    columns_per_layer: int = 3,
    height: int = 120,
) -> U8:
    """A picture of clips, one row each: every layer at a few moments, with text above.

    labels: text of each clip, by default ``describe(clip)``; lines that do not fit are cut.
    columns_per_layer: moments shown of each layer. height: of one tile, in pixels.
    Returns uint8 ``[height, width, 3]``. Raises ValueError for no clips or too few labels.
    """
    if not clips:
        raise ValueError("a contact sheet needs at least one clip")
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"{len(labels)} labels for {len(clips)} clips")
    texts = [describe(clip) for clip in clips] if labels is None else list(labels)
    columns = max(1, min(columns_per_layer, max(clip.num_frames for clip in clips)))
    aspect = max(clip.size[1] / clip.size[0] for clip in clips)
    width = max(MARGIN, round(height * min(aspect, 3.0)))
    strip, names = columns * width + MARGIN, shown_layers(clips)
    blocks = [_headings(strip, names)]
    for clip, text in zip(clips, texts, strict=True):
        blocks += [_text(text, len(names) * strip + MARGIN)]
        blocks += [_row(clip, names, columns, height, width)]
    return np.concatenate(blocks)


def save_sheet(
    path: str | Path,
    clips: Sequence[Shown],
    labels: Sequence[str] | None = None,
    *,
    columns_per_layer: int = 3,
    height: int = 120,
) -> Path:
    """Write ``contact_sheet`` as a PNG file, atomically; returns its path."""
    sheet = contact_sheet(clips, labels, columns_per_layer=columns_per_layer, height=height)
    write_bytes(path, encode_png(sheet))
    return Path(path)


def fit(image: U8, height: int, width: int) -> U8:
    """``image [H, W, 3]`` scaled to fit into ``[height, width, 3]``, on dark paper."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image, size, interpolation=method)[:height, :width]
    out = np.full((height, width, 3), PAPER, np.uint8)
    y, x = (height - scaled.shape[0]) // 2, (width - scaled.shape[1]) // 2
    out[y : y + scaled.shape[0], x : x + scaled.shape[1]] = scaled
    return out


def _row(clip: Shown, names: Sequence[str], columns: int, height: int, width: int) -> U8:
    strip = columns * width + MARGIN
    out = np.full((height + MARGIN, len(names) * strip + MARGIN, 3), PAPER, np.uint8)
    known = _stack(clip).frames
    count = min(columns, clip.num_frames)
    moments = np.rint(np.linspace(0, clip.num_frames - 1, count)).astype(int)
    few = clip.take([int(moment) for moment in moments]) if clip.num_frames > 1 else clip
    for layer, name in enumerate(names):
        for column, frame in enumerate(shown_layer(few, name) if name in known else ()):
            x = MARGIN + layer * strip + column * width
            out[:height, x : x + width - GAP] = fit(frame, height, width - GAP)
    return out


def _headings(strip: int, names: Sequence[str]) -> U8:
    image = Image.new("RGB", (len(names) * strip + MARGIN, LINE_HEIGHT + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT_SIZE)
    for index, name in enumerate(names):
        matted = name not in (BLENDED, BACKGROUND) and not name.startswith(ALPHA)
        text = _cut(f"{name} on checkerboard" if matted else name, strip - MARGIN, font)
        draw.text((MARGIN + index * strip, MARGIN // 2), text, fill=FAINT, font=font)
    return np.asarray(image)


def _text(text: str, width: int) -> U8:
    lines = text.splitlines() or [""]
    height = LINE_HEIGHT * len(lines) + MARGIN
    image = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT_SIZE)
    for index, line in enumerate(lines):
        place = MARGIN, MARGIN // 2 + index * LINE_HEIGHT
        fill = FAINT if index else INK
        draw.text(place, _cut(line, width - 2 * MARGIN, font), fill=fill, font=font)
    return np.asarray(image)


def _cut(line: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The line, or its start and an ellipsis, no wider than ``width`` pixels."""
    line = one_line(line[:1000])
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[: max(0, int(len(line) * 0.95) - 1)]
    return line + "..."
