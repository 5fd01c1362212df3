"""Media cells of rows decoded in a child process: the way for every corpus that a stranger made.

What comes back are plain pictures of the size and number that the row says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from layerflow.clip import ALPHA, LAYERS, PROMPTED, U8, LayeredClip
from layerflow.corpus.row_check import check_unread
from layerflow.corpus.table import decode_row
from layerflow.media.cells import Bounds, MediaError, decode_layer
from layerflow.media.isolate import isolated


def read_clip(row: Mapping[str, Any]) -> LayeredClip:
    """The clip of a corpus row, decoded in a child process.

    Raises MediaError for cells that do not decode to what the row says, and for a child that
    crashes or hangs.
    """
    return clips_of(row, [_read_clip(dict(row))])[0]


def check_stored(row: Mapping[str, Any]) -> None:
    """Raises MediaError for a row that ``check_row`` refuses without decoding it.

    The headers of its cells are read in a child process.
    """
    _check(dict(row))


def read_cells(row: Mapping[str, Any], layers: Sequence[str]) -> dict[str, U8]:
    """Some layers of a corpus row, decoded in a child process: uint8 ``[T, H, W, 3]``, alpha
    ``[T, H, W]``.

    row: with these layers, ``num_frames``, ``height`` and ``width``. Raises MediaError.
    """
    bounds = Bounds.of(row)
    wanted = {name: row[name] for name in (*layers, "num_frames", "height", "width")}
    found = dict(zip(layers, _read_cells(wanted, tuple(layers)), strict=True))
    for layer, frames in found.items():
        shape = (bounds.frames, bounds.height, bounds.width, *(() if layer == ALPHA else (3,)))
        if frames.shape != shape:
            raise MediaError("the decoder gave other pictures than the row says")
    return found


def layers_of(clip: LayeredClip) -> tuple[dict[str, U8], float, str]:
    """A clip as an answer of a contained child: its layers, rate and kind; see ``clips_of``."""
    return {name: clip.layer(name) for name in LAYERS}, float(clip.fps), clip.kind


def clips_of(row: Mapping[str, Any], answer: Any) -> list[LayeredClip]:
    """The clips that a child made of a row, each as ``layers_of`` gives it.

    Raises MediaError when the answer is none.
    """
    try:
        return [
            LayeredClip(
                **layers,
                prompts={layer: row[f"{layer}_prompt"] or "" for layer in PROMPTED},
                fps=float(fps),
                kind=kind,
                alpha_kind=row["alpha_kind"],
                background_kind=row["background_kind"],
            )
            for layers, fps, kind in answer
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise MediaError(f"the decoder gave an answer that is none: {error}") from error


@isolated
def _read_clip(row: dict[str, Any]) -> tuple[dict[str, U8], float, str]:
    return layers_of(decode_row(row))


@isolated
def _read_cells(row: dict[str, Any], layers: tuple[str, ...]) -> tuple[U8, ...]:
    bounds = Bounds.of(row)
    return tuple(decode_layer(name, row[name] or b"", bounds) for name in layers)


@isolated
def _check(row: dict[str, Any]) -> None:
    check_unread(row)
