"""Checks of one corpus row: its values, its media cells, the compositing equation.

Everything in a row is taken as hostile: sizes are compared with the row's own numbers, and those
with limits, before a cell is decoded.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import av
import numpy as np

from layerflow.clip import ALPHA, BLENDED, LAYERS, LayeredClip, composite
from layerflow.corpus.columns import CODED_RMS_LIMIT, COLUMNS, EXACT_LEVELS, cells
from layerflow.corpus.table import decode_row
from layerflow.media.known import KNOWN
from layerflow.media.opening import (
    MAX_CELL_BYTES,
    PNG_MAGIC,
    Bounds,
    MediaError,
    check_png,
    open_cell,
)

FIX_ROW = "leave this row out with `layerflow filter`, or make the corpus again from its source"


@dataclass(frozen=True)
class Problem:
    """What is wrong, where, and what to do. ``row`` is None for the folder itself."""

    row: int | None
    field: str
    what: str
    fix: str = FIX_ROW
    id: str = ""

    def __str__(self) -> str:
        place = "corpus" if self.row is None else f"row {self.row}"
        name = f" (id {self.id})" if self.id else ""
        return f"{place}{name}, {self.field}: {self.what}. Fix: {self.fix}"


@dataclass(frozen=True)
class RowReport:
    """The result of one row. ``encoded_rms``: rms in grey levels (0..255) between ``blended`` and
    the recomposition of the other layers, all as decoded; None when a layer did not decode."""

    problems: tuple[Problem, ...]
    kind: str = ""
    encoded_rms: float | None = None


@dataclass(frozen=True)
class Cell:
    """What a media cell's header and packets say. codec is "png", "h264", "ffv1" and so on."""

    codec: str
    pixel_format: str
    height: int
    width: int
    num_frames: int


def probe_cell(data: bytes, bounds: Bounds | None = None) -> Cell:
    """Read a media cell's header and count its packets; nothing is decoded.

    bounds: packets beyond them are not counted. Raises MediaError when it is no PNG and no video.
    """
    if data[:8] == PNG_MAGIC:
        check_png(data)
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        modes = {0: "gray", 2: "rgb24", 4: "ya8", 6: "rgba"}
        bits, mode = data[24], modes.get(data[25], "palette")
        return Cell("png", mode if bits == 8 else f"{mode} of {bits} bits", height, width, 1)
    most = (bounds or Bounds()).frames
    try:
        with open_cell(data) as container:
            packets = (packet for packet in container.demux(video=0) if packet.size)
            frames = sum(1 for _ in itertools.islice(packets, most + 1))
            context = container.streams.video[0].codec_context
            return Cell(context.name, context.pix_fmt or "", context.height, context.width, frames)
    except MediaError:
        raise
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise MediaError(f"media cell cannot be read: {error}") from error


def check_row(row: Mapping[str, Any], index: int, *, decode: bool = True) -> RowReport:
    """All checks of one row; stops at what makes later checks meaningless.

    decode: also the pictures and the compositing equation, which takes most of the time.
    """
    return _checked(row, index, decode)[0]


def sound_clip(row: Mapping[str, Any], index: int = 0) -> LayeredClip:
    """The clip of a row that ``check_row`` finds nothing wrong with, decoded in this process.

    Raises MediaError that names the first problem.
    """
    found, clip = _checked(row, index, True)
    if found.problems:
        raise MediaError(f"{found.problems[0].field}: {found.problems[0].what}")
    assert clip is not None
    return clip


def check_unread(row: Mapping[str, Any]) -> None:
    """Raises MediaError for the first problem of a row that is seen without decoding it."""
    for found in [*_values(row)][:1] or [*_cells(row)][:1]:
        raise MediaError(f"{found[0]}: {found[1]}")


def check_equation(row: Mapping[str, Any], clip: LayeredClip) -> None:
    """Raises MediaError when the layers of a decoded row do not make its blended picture."""
    for found in _equation(row, *equation_error(clip)):
        raise MediaError(f"{found[0]}: {found[1]}")


def _checked(
    row: Mapping[str, Any], index: int, decode: bool
) -> tuple[RowReport, LayeredClip | None]:
    kind, id = str(row["kind"])[:40], str(row["id"])[:64]

    def report(found: Iterable[tuple[str, ...]], rms: float | None = None) -> RowReport:
        return RowReport(
            tuple(Problem(index, f[0], f[1], f[2] if len(f) > 2 else FIX_ROW, id) for f in found),
            kind,
            rms,
        )

    found = list(_values(row)) or list(_cells(row))
    if found or not decode:
        return report(found), None
    try:
        clip = decode_row(row)
        for column in COLUMNS:
            column.decode(row, clip)
        rms, worst = equation_error(clip)
    except (MediaError, ValueError) as error:
        return report([("media cells", str(error))]), None
    if clip.size != (row["height"], row["width"]) or clip.num_frames != row["num_frames"]:
        text = f"the layers decode to {list(clip.alpha.shape)}, not to the row's size"
        return report([("media cells", text)]), None
    return report(_equation(row, rms, worst), rms), clip


def _values(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    free = {column.name for column in COLUMNS if column.media or not column.always}
    nulls = [name for name in row if name not in free and row[name] is None]
    if nulls:
        yield nulls[0], "there is no value"
        return
    if not re.fullmatch(r"[0-9a-f]{16}", row["id"]):
        yield "id", f"{row['id'][:40]!r} is not 16 lower-case hex digits"
    for column in COLUMNS:
        if column.always:
            yield from column.wrong_word(row)
    for name in (column.name for column in COLUMNS if column.positive):
        if not (math.isfinite(row[name]) and row[name] > 0):
            yield name, f"{row[name]} is not positive"
            return
    if row["kind"] == "image" and row["num_frames"] != 1:
        yield "num_frames", f"an image clip has 1 frame, not {row['num_frames']}"
    if row["num_frames"] * row["height"] * row["width"] * 10 > MAX_CELL_BYTES:
        yield "num_frames", f"the decoded layers would take over {MAX_CELL_BYTES >> 30} GiB"
        return
    try:
        Bounds.of(row)
    except MediaError as error:
        yield "num_frames", str(error)
        return
    yield from _origin(row["origin"])
    for column in COLUMNS:
        if not column.always:
            yield from column.wrong_word(row)
        yield from column.check(row)
    bad = [n for n, value in row["quality"].items() if value is not None and math.isnan(value)]
    if bad:
        yield f"quality.{bad[0]}", "the score is NaN"


def _origin(origin: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    uri = origin["uri"]
    fix = "origin.uri must be relative to the input root, or a remote URL; make the corpus again"
    if not uri:
        yield "origin.uri", "there is no value", fix
    elif uri_escapes(uri):
        yield "origin.uri", f"{uri[:200]!r} is an absolute local path or leaves its root", fix
    if origin["sha256"] and not re.fullmatch(r"[0-9a-f]{64}", origin["sha256"]):
        yield "origin.sha256", f"{origin['sha256'][:80]!r} is no sha256"
    start, end = origin["start"], origin["end"]
    if start is not None and end is not None and not 0 <= start <= end:
        yield "origin.start", f"the span {start} to {end} seconds is not in order"


def uri_escapes(uri: str) -> bool:
    """Whether a uri is an absolute local path or climbs out of its root with ``..``."""
    windows = PureWindowsPath(uri)  # a:b.mp4 is a plain name, C:\\b.mp4 and C:/b.mp4 are not
    if uri.startswith(("/", "~/", "~\\", "file:")) or windows.root or len(windows.drive) > 2:
        return True
    return ".." in PurePosixPath(uri).parts or ".." in windows.parts


def _cells(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    bounds = Bounds.of(row)
    for layer, data in [*((layer, row[layer]) for layer in LAYERS), *cells(row)]:
        if not data:
            yield layer, "the media cell is empty"
            continue
        try:
            cell = probe_cell(data, bounds)
        except MediaError as error:
            yield layer, str(error)
            continue
        if (cell.height, cell.width) != (row["height"], row["width"]):
            size = f"{cell.height}x{cell.width}, the row says {row['height']}x{row['width']}"
            yield layer, f"the media cell is {size}"
        elif cell.num_frames != row["num_frames"]:
            more = "more than " if cell.num_frames > bounds.frames else ""
            frames = f"{more}{min(cell.num_frames, bounds.frames)} frames"
            yield layer, f"the media cell holds {frames}, the row says {row['num_frames']}"
        elif row["kind"] == "image" and cell.codec != "png":
            yield layer, f"an image clip holds PNG, not {cell.codec}"
        elif layer.endswith((ALPHA, KNOWN)) and (
            cell.codec not in ("ffv1", "png") or cell.pixel_format != "gray"
        ):
            what = layer if layer == KNOWN else ALPHA
            yield layer, f"{what} must be lossless 8-bit grey, not {cell.codec} {cell.pixel_format}"


def equation_error(clip: LayeredClip) -> tuple[float, int]:
    """Of ``blended - (alpha*foreground + (1-alpha)*background)``, all layers as decoded:
    the root mean square over pixels and channels, and the greatest difference, in grey levels.
    """
    total, worst = 0.0, 0
    for t in range(clip.num_frames):
        whole = composite(clip.foreground[t], clip.alpha[t], clip.background[t])
        difference = np.abs(clip.blended[t].astype(np.int32) - whole)
        total += float(np.square(difference).sum())
        worst = max(worst, int(difference.max()))
    return math.sqrt(total / clip.blended.size), worst


def _equation(row: Mapping[str, Any], rms: float, worst: int) -> Iterator[tuple[str, ...]]:
    stored = row["quality"].get("equation_error")
    fix = "make the clip again: its layers do not make its blended picture"
    if row["kind"] == "image" and worst > EXACT_LEVELS:
        yield BLENDED, f"differs from the recomposed layers by up to {worst} levels", fix
    if row["kind"] == "pasted" and rms > CODED_RMS_LIMIT:
        text = f"differs from the recomposed layers by {rms:.1f} levels rms"
        yield BLENDED, f"{text}; coding explains at most {CODED_RMS_LIMIT:g}", fix
    if row["kind"] != "mined" and stored is not None and stored > EXACT_LEVELS:
        yield "quality.equation_error", f"{stored:g} levels before encoding is more than 1", fix
