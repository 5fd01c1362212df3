"""What of a clip is known and what was made up: two bits a pixel, from the corpus to the loss.

A mined clip shows things that its video never did: the background behind a subject that stood in
front of it all the time, and the colour of soft edges over such a background. The column ``known``
says where. It is one grey picture a frame of four levels, ``LEVEL * (background + 2 *
foreground)``:

- ``background`` is 1 where the background was really seen, in this frame or in others;
- ``foreground`` is 1 where the foreground's colour times alpha, which is what the network sees of
  it, is more than a guess.

The other layers are always known. A clip without the column is known everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from layerflow.clip import BACKGROUND, FOREGROUND, U8, cover_box
from layerflow.media.cells import Bounds, MediaError, decode_alpha, encode_alpha, encode_png

KNOWN = "known"
LEVEL = 85  # 0b01010101: the two lowest bits of every level are the two planes
ALL_KNOWN = 3 * LEVEL
_BITS = {BACKGROUND: 1, FOREGROUND: 2}


def pack_known(background: NDArray[np.bool_], foreground: NDArray[np.bool_]) -> U8:
    """The levels uint8 ``[T, H, W]`` of two bool ``[T, H, W]``: what is known of each layer."""
    bits = background.astype(np.uint8) | (2 * foreground.astype(np.uint8))
    return np.asarray(bits * np.uint8(LEVEL))


def known_of(layer: str, known: U8) -> NDArray[np.bool_]:
    """What is known of a layer, bool like ``known``: levels uint8 ``[T, H, W]``."""
    bit = _BITS.get(layer.partition(".")[0])
    return np.ones(known.shape, np.bool_) if bit is None else (known & bit) != 0


def encode_known(known: U8, fps: float, *, still: bool = False) -> bytes | None:
    """The ``known`` cell of a row, lossless; None where all is known."""
    if (known == ALL_KNOWN).all():
        return None
    return encode_png(known[0]) if still else encode_alpha(known, fps, few_levels=True)


def decode_known(
    data: bytes, bounds: Bounds | None = None, keep: Sequence[int] | None = None
) -> U8:
    """The levels of a ``known`` cell, uint8 ``[T, H, W]``.

    bounds, keep and errors as of ``layerflow.media.cells.decode_alpha``; MediaError also for other
    levels.
    """
    known = decode_alpha(data, bounds, keep)
    if (known % LEVEL).any():
        raise MediaError(f"{KNOWN} has other levels than multiples of {LEVEL}")
    return known


def resize_known(known: U8, height: int, width: int) -> U8:
    """The levels after ``layerflow.clip.resize_cover``: a pixel is known if all that it is made of
    is. uint8 ``[T, H, W]`` in and out."""
    if known.shape[1:3] == (height, width):
        return known
    planes = []
    for layer in (BACKGROUND, FOREGROUND):
        unknown = ~known_of(layer, known)
        planes.append(~_touched(unknown, height, width))
    return pack_known(*planes)


def _touched(unknown: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Where resized pixels are made of some unknown ones, bool ``[T, height, width]``.

    The filters are those of ``resize_cover``, but without negative weights, which may cancel. A
    cubic one, which enlarges, reaches a pixel further than the linear one that stands for it.
    """
    import cv2

    _, own_height, own_width = unknown.shape
    h, w, y, x = cover_box(own_height, own_width, height, width)
    out = np.empty((len(unknown), height, width), np.bool_)
    for t, frame in enumerate(unknown.astype(np.float32)):
        if h <= own_height and w <= own_width:
            amount = cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA)
        else:
            wider = cv2.dilate(frame, np.ones((3, 3), np.uint8))
            amount = cv2.resize(wider, (w, h), interpolation=cv2.INTER_LINEAR)
        out[t] = amount[y : y + height, x : x + width] > 1e-3
    return out


def latent_known(known: U8, layers: Sequence[str], time: int, side: int) -> U8:
    """What is known of each latent cell: uint8 ``[n, f, h, w]``, 1 or 0, ``n`` of ``layers``.

    known: levels uint8 ``[T, H, W]`` at the size that goes into the autoencoder. time, side: pixel
    frames of a latent frame, and pixels of a latent cell's side. A cell is known when all of its
    ``side x side`` pixels are, in all of the ``time`` frames that it stands for; of an odd number
    of frames the first stands alone (``layerflow.model.autoencoder.latent_frames``). ValueError for
    a size or number of frames that does not divide so.
    """
    count, height, width = known.shape
    first = count % 2 if time > 1 else 0
    if height % side or width % side or (count - first) % time:
        raise ValueError(f"{list(known.shape)} does not divide into cells of {time}x{side}x{side}")
    planes = np.stack([known_of(layer, known) for layer in layers]).astype(np.uint8)
    blocks = planes.reshape(len(layers), count, height // side, side, width // side, side)
    cells = blocks.min((3, 5))
    rest = cells[:, first:].reshape(len(layers), -1, time, height // side, width // side).min(2)
    return np.concatenate([cells[:, :first], rest], 1)
