"""Pictures of clips for people: contact sheets and four-up mosaics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from layerflow.clip import PROMPTED, U8, LayeredClip, checkerboard, composite
from layerflow.files import write_bytes
from layerflow.locations import one_line
from layerflow.media.cells import encode_png

SHOWN = ("blended", "foreground", "alpha", "background")
HEADINGS = ("blended", "foreground on checkerboard", "alpha", "background")
MARGIN, GAP = 8, 2
TEXT_SIZE = 13
LINE_HEIGHT = 17
PAPER, INK, FAINT = (24, 26, 30), (235, 235, 235), (150, 156, 166)


def shown_layer(clip: LayeredClip, name: str) -> U8:
    """One layer as uint8 ``[T, H, W, 3]`` to look at: the foreground lies on a checkerboard."""
    if name == "foreground":
        board = checkerboard(*clip.size, cell=max(8, clip.size[0] // 24))
        return composite(clip.foreground, clip.alpha, np.broadcast_to(board, clip.foreground.shape))
    frames = clip.layer(name)
    return frames if frames.ndim == 4 else np.repeat(frames[..., None], 3, axis=3)


def four_up(clip: LayeredClip) -> U8:
    """uint8 ``[T, 2H, 2W, 3]``: blended | foreground on checkerboard over alpha | background."""
    blended, foreground, alpha, background = (shown_layer(clip, name) for name in SHOWN)
    top = np.concatenate([blended, foreground], axis=2)
    bottom = np.concatenate([alpha, background], axis=2)
    return np.concatenate([top, bottom], axis=1)


def describe(
    clip: LayeredClip, id: str = "", scores: Mapping[str, float | None] | None = None
) -> str:
    """Lines of text for a clip: what it is, its scores, its prompts."""
    height, width = clip.size
    facts = f"{clip.kind}, {clip.num_frames} x {width}x{height}, {clip.fps:g} fps"
    known = [f"{name} {value:.4g}" for name, value in (scores or {}).items() if value is not None]
    lines = ["   ".join(part for part in (id, facts, *known) if part)]
    prompts = [f"{name}: {clip.prompts[name]}" for name in PROMPTED if clip.prompts.get(name)]
    return "\n".join([*lines, "   ".join(prompts)] if prompts else lines)


def contact_sheet(
    clips: Sequence[LayeredClip],
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
    strip = columns * width + MARGIN
    blocks = [_headings(strip)]
    for clip, text in zip(clips, texts, strict=True):
        blocks += [_text(text, 4 * strip + MARGIN), _row(clip, columns, height, width)]
    return np.concatenate(blocks)


def save_sheet(
    path: str | Path,
    clips: Sequence[LayeredClip],
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


def _row(clip: LayeredClip, columns: int, height: int, width: int) -> U8:
    strip = columns * width + MARGIN
    out = np.full((height + MARGIN, 4 * strip + MARGIN, 3), PAPER, np.uint8)
    count = min(columns, clip.num_frames)
    moments = np.rint(np.linspace(0, clip.num_frames - 1, count)).astype(int)
    few = clip.take([int(moment) for moment in moments]) if clip.num_frames > 1 else clip
    for layer, name in enumerate(SHOWN):
        for column, frame in enumerate(shown_layer(few, name)):
            x = MARGIN + layer * strip + column * width
            out[:height, x : x + width - GAP] = fit(frame, height, width - GAP)
    return out


def _headings(strip: int) -> U8:
    image = Image.new("RGB", (4 * strip + MARGIN, LINE_HEIGHT + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT_SIZE)
    for index, heading in enumerate(HEADINGS):
        text = _cut(heading, strip - MARGIN, font)
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
