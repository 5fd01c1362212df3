"""Near-duplicate windows across a corpus: the same footage encoded, scaled or graded again.

A window is summed up by five small pictures (three frames and the change between them), compared
only with windows that share one of a few short hashes, so that time and memory grow with the
number of windows and not with its square.
"""

from __future__ import annotations

import cv2
import numpy as np

from layerflow.clip import U8

ROWS, COLUMNS = 8, 12
CELLS = ROWS * COLUMNS
PICTURES = 5
MAX_LEVELS = 5.0  # mean difference of a frame's cells that re-encoding and grading may make
MAX_CHANGE = 0.4  # share of the movement that may lie elsewhere
STILL = 0.6  # mean levels of change below which movement says nothing
BAND_BITS = 16
CROWD = 64  # windows of one hash that a later one is compared with


def signature(thumbs: U8) -> bytes:
    """Five pictures of 8 x 12 cells, 480 bytes: first, middle and last frame, and what changes
    from each to the next.

    thumbs uint8 ``[T >= 1, h, w, 3]``, the frames of one window.
    """
    gray = [cv2.cvtColor(thumbs[t], cv2.COLOR_RGB2GRAY) for t in (0, len(thumbs) // 2, -1)]
    changes = [cv2.absdiff(gray[0], gray[1]), cv2.absdiff(gray[1], gray[2])]
    # Changes are small: eight times as many levels fit before they clip.
    cells = [_cells(g, 1.0) for g in gray] + [_cells(c, 8.0) for c in changes]
    return np.stack(cells).tobytes()


def _cells(picture: U8, gain: float) -> U8:
    mean = cv2.resize(picture.astype(np.float32), (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)
    return np.clip(np.rint(mean * gain), 0, 255).astype(np.uint8)


def distance(one: bytes, other: bytes) -> float:
    """How far apart two signatures are; at most 1 means duplicates.

    The larger of the frames' mean difference over ``MAX_LEVELS`` (each frame's mean brightness
    taken out) and the movement's relative difference over ``MAX_CHANGE``. So footage of one
    static camera with another subject is no duplicate.
    """
    a = np.frombuffer(one, np.uint8).astype(np.float32).reshape(PICTURES, CELLS)
    b = np.frombuffer(other, np.uint8).astype(np.float32).reshape(PICTURES, CELLS)
    frames = (a[:3] - a[:3].mean(1, keepdims=True)) - (b[:3] - b[:3].mean(1, keepdims=True))
    moved = max(float(a[3:].mean()), float(b[3:].mean()))
    elsewhere = float(np.abs(a[3:] - b[3:]).mean()) / moved if moved > 8 * STILL else 0.0
    return max(float(np.abs(frames).mean()) / MAX_LEVELS, elsewhere / MAX_CHANGE)


def find_duplicates(
    signatures: list[bytes], groups: list[int], limit: float = 2.0
) -> dict[int, tuple[int, float]]:
    """For each window that resembles an earlier one of another group: which, and how closely.

    groups: the input a window comes from; windows of one input are never compared. Only pairs
    closer than ``limit`` are told, each window with the nearest earlier one that is not itself
    a duplicate. A pair that shares no hash is not seen.
    """
    if len(signatures) < 2:
        return {}
    found: dict[int, tuple[int, float]] = {}
    for later, candidates in _candidates(signatures).items():
        for earlier in sorted(candidates):
            if groups[earlier] == groups[later] or found.get(earlier, (0, 2.0))[1] <= 1.0:
                continue
            far = distance(signatures[earlier], signatures[later])
            if far < min(limit, found.get(later, (0, np.inf))[1]):
                found[later] = (earlier, far)
    return found


def _candidates(signatures: list[bytes]) -> dict[int, set[int]]:
    """Later window -> earlier ones that share a hash, in the order of the windows."""
    bands = np.stack([_bands(signature) for signature in signatures])
    pairs: dict[int, set[int]] = {}
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order], prepend=-1))
        for crowd in np.split(order, starts[1:]):
            for place in range(1, len(crowd)):
                earlier = crowd[max(0, place - CROWD) : place]
                pairs.setdefault(int(crowd[place]), set()).update(int(i) for i in earlier)
    return dict(sorted(pairs.items()))


def _bands(signature: bytes) -> np.ndarray:
    """Short hashes, int32: signs of gradients between neighbouring cells, smoothed over frames.

    Bits are taken where a mean picture's gradients are strongest in most footage: between coarse
    cells. Each band is a different part of the picture, so a logo or a mild crop spoils few.
    """
    pictures = np.frombuffer(signature, np.uint8).reshape(PICTURES, ROWS, COLUMNS)[:3]
    mean = pictures.astype(np.float32).mean(0)
    coarse = mean.reshape(4, 2, 6, 2).mean((1, 3))
    across = coarse[:, 1:] > coarse[:, :-1]  # [4, 5]
    down = coarse[1:] > coarse[:-1]  # [3, 6]
    bits = np.concatenate([across.ravel(), down.ravel()])  # 38
    places = np.stack([(np.arange(BAND_BITS) * step + step) % len(bits) for step in (1, 3, 5, 7)])
    halves = bits[places]
    weights = 1 << np.arange(BAND_BITS // 2)
    low = (halves[:, : BAND_BITS // 2] * weights).sum(1)
    high = (halves[:, BAND_BITS // 2 :] * weights).sum(1)
    # Half bands: 8 equal bits are likelier to survive grading than 16.
    shift = np.arange(8) << 8
    return (np.concatenate([low, high]) + shift).astype(np.int32)
