"""Near-duplicate windows across a corpus: the same footage encoded, scaled or graded again.

A window is summed up by five small pictures (three frames and the change between them). Candidates
share one of a few hashes: which of two places of the mean picture is brighter, for pairs of places
drawn once. That survives grading and encoding; comparisons that are nearly a tie are tried both
ways (multi-probe locality-sensitive hashing, after Lv et al., VLDB 2007). Windows of one hash by
the thousand (a fixed camera) are compared with their neighbours in the order of a few projections.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from layerflow.clip import U8
from layerflow.seeds import numbered

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Places of windows, the earlier ones and the later ones."""

ROWS, COLUMNS = 8, 12
CELLS = ROWS * COLUMNS
PICTURES = 5
MAX_LEVELS = 5.0  # mean difference of a frame's cells that re-encoding and grading may make
MAX_CHANGE = 0.4  # share of the movement that may lie elsewhere
STILL = 0.6  # mean levels of change below which movement says nothing
BANDS = 6
BITS = 28  # comparisons of a hash: enough for some million windows
TIES = 6  # comparisons of a hash that are tried both ways, at most
TIE = 4.0  # levels below which a comparison is a tie
CROWD = 48  # windows of one hash above which not all of its pairs are compared
NEIGHBOURS = 24  # of a crowded window, in the order of each projection
BLOCK = 200_000  # pairs that are compared at a time: some hundred megabytes
IN_MEMORY = 64 << 20  # bytes of an array above which it lies in a file


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
    """How far apart two signatures are; at most 1 means duplicates. See ``distances``."""
    pair = [np.frombuffer(each, np.uint8)[None] for each in (one, other)]
    return float(distances(*pair)[0])


def distances(one: U8, other: U8) -> NDArray[np.float32]:
    """How far apart signatures uint8 ``[N, 480]`` are, row by row; at most 1 means duplicates.

    The larger of the frames' mean difference over ``MAX_LEVELS`` (each frame's mean brightness
    taken out) and the movement's relative difference over ``MAX_CHANGE``. So footage of one
    static camera with another subject is no duplicate.
    """
    a, b = (each.reshape(-1, PICTURES, CELLS).astype(np.float32) for each in (one, other))
    frames = (a[:, :3] - b[:, :3]) - (a[:, :3] - b[:, :3]).mean(2, keepdims=True)
    moved = np.maximum(a[:, 3:].mean((1, 2)), b[:, 3:].mean((1, 2)))
    elsewhere = np.abs(a[:, 3:] - b[:, 3:]).mean((1, 2)) / np.maximum(moved, 1e-6)
    elsewhere[moved <= 8 * STILL] = 0
    return np.maximum(np.abs(frames).mean((1, 2)) / MAX_LEVELS, elsewhere / MAX_CHANGE)


def find_duplicates(
    signatures: Sequence[bytes] | U8, groups: Sequence[int] | NDArray[np.int64], limit: float = 2.0
) -> dict[int, tuple[int, float]]:
    """For each window that resembles an earlier one of another group: which, and how closely.

    signatures: of ``signature``, or uint8 ``[N, 480]``. groups: the input a window comes from;
    windows of one input are never compared. Only pairs closer than ``limit`` are told, each window
    with the nearest earlier one that is not itself a duplicate. A pair that shares no hash is not
    seen. Memory: some 50 bytes a window and what the tables on disk (``TMPDIR``, 0.3 kB a window)
    find there.
    """
    if len(signatures) < 2:
        return {}
    if not isinstance(signatures, np.ndarray):
        signatures = np.frombuffer(b"".join(signatures), np.uint8).reshape(len(signatures), -1)
    pairs = _near_pairs(signatures, np.asarray(groups), limit)
    found: dict[int, tuple[int, float]] = {}
    for later, earlier, far in sorted(pairs):
        if found.get(earlier, (0, np.inf))[1] > 1.0 and far < found.get(later, (0, np.inf))[1]:
            found[later] = (earlier, far)
    return found


def _near_pairs(
    signatures: U8, groups: NDArray[np.int64], limit: float
) -> set[tuple[int, int, float]]:
    """(later, earlier, distance) of all candidates of different groups that are near."""
    coarse, change = _coarse(signatures)
    moved = change.mean(1)
    near: set[tuple[int, int, float]] = set()
    for one, other in _candidates(coarse, change):
        for start in range(0, len(one), BLOCK):
            a, b = one[start : start + BLOCK], other[start : start + BLOCK]
            wanted = groups[a] != groups[b]
            a, b = a[wanted], b[wanted]
            # A mean over cells cannot differ by more than the cells do.
            close = np.abs(coarse[a] - coarse[b]).mean(1) < limit * MAX_LEVELS
            elsewhere = np.abs(change[a] - change[b]).mean(1)
            most = np.maximum(moved[a], moved[b])
            close &= (elsewhere < limit * MAX_CHANGE * most) | (most <= 8 * STILL)
            a, b = a[close], b[close]
            far = distances(signatures[a], signatures[b])
            kept = far < limit
            later, earlier = np.maximum(a, b)[kept], np.minimum(a, b)[kept]
            near.update(zip(later.tolist(), earlier.tolist(), far[kept].tolist(), strict=True))
    return near


def _coarse(signatures: U8) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """In 4 x 6 cells: the mean picture, its brightness taken out, float32 ``[N, 24]``, and the two
    changes, ``[N, 48]``."""
    count = len(signatures)
    coarse, change = _table((count, 24), np.float32), _table((count, 48), np.float32)
    for start in range(0, count, BLOCK):
        cells = signatures[start : start + BLOCK].reshape(-1, PICTURES, 4, 2, 6, 2)
        mean = cells.mean((3, 5), dtype=np.float32).reshape(-1, PICTURES, 24)
        picture = mean[:, :3].mean(1)
        coarse[start : start + BLOCK] = picture - picture.mean(1, keepdims=True)
        change[start : start + BLOCK] = mean[:, 3:].reshape(-1, 48)
    return coarse, change


def _table(shape: tuple[int, int], kind: type[np.generic]) -> NDArray[Any]:
    """An array to fill; in a file without a name where it is large."""
    if shape[0] * shape[1] * np.dtype(kind).itemsize <= IN_MEMORY:
        return np.empty(shape, kind)
    with tempfile.TemporaryFile(prefix="layerflow-") as file:
        return np.asarray(np.memmap(file, kind, "w+", shape=shape))


def _candidates(coarse: NDArray[np.float32], change: NDArray[np.float32]) -> Iterator[Pairs]:
    """Pairs that share a hash, most of them more than once."""
    rng = numbered(0)
    places = np.array([(a, b) for a in range(24) for b in range(a)])
    for _ in range(BANDS):
        chosen = places[rng.choice(len(places), BITS, replace=False)]
        keys, ties = _hashes(coarse, chosen)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        projection = rng.standard_normal((24, 1)), rng.standard_normal((48, 1))
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        sizes = np.diff(starts, append=len(ordered))
        for start, size in zip(starts[sizes > CROWD], sizes[sizes > CROWD], strict=True):
            crowd = order[start : start + size]
            values = coarse[crowd] @ projection[0], change[crowd] @ projection[1]
            yield _neighbours(crowd, np.concatenate(values, axis=1))
        for begin in range(0, len(keys), BLOCK):
            yield from _probed(keys, ties[begin : begin + BLOCK], begin, ordered, order)


def _probed(
    keys: NDArray[np.int64],
    ties: NDArray[np.int8],
    begin: int,
    ordered: NDArray[np.int64],
    order: NDArray[np.int64],
) -> Iterator[Pairs]:
    """Pairs of the windows from ``begin`` on, whose ``ties`` are given, with those that have their
    hash, or would have it if some of the ties were the other way round."""
    for probe in range(1 << TIES):
        # One bit a tie: a window with fewer ties has no such probe.
        bits = ties[:, [bit for bit in range(TIES) if probe >> bit & 1]]
        rows = np.flatnonzero((bits >= 0).all(1))
        turned = (np.int64(1) << bits[rows].astype(np.int64)).sum(1)
        rows += begin
        wanted = keys[rows] ^ turned
        first = np.searchsorted(ordered, wanted, "left")
        count = np.searchsorted(ordered, wanted, "right") - first
        lone = (count > 0) & (count <= CROWD)
        yield _ranges(rows[lone], first[lone], count[lone], order)


def _hashes(
    coarse: NDArray[np.float32], chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Hashes int64 ``[N]``, and which of their bits are nearly ties, int8 ``[N, TIES]``: -1 where
    there are no more."""
    weights = np.int64(1) << np.arange(BITS, dtype=np.int64)
    keys = np.empty(len(coarse), np.int64)
    ties = np.empty((len(coarse), TIES), np.int8)
    for start in range(0, len(coarse), BLOCK):
        part = coarse[start : start + BLOCK]
        change = part[:, chosen[:, 0]] - part[:, chosen[:, 1]]
        keys[start : start + BLOCK] = (change > 0) @ weights
        margin = np.abs(change)
        closest = np.argpartition(margin, TIES, axis=1)[:, :TIES]
        is_tie = np.take_along_axis(margin, closest, 1) < TIE
        ties[start : start + BLOCK] = np.where(is_tie, closest, -1)
    return keys, ties


def _ranges(
    rows: NDArray[np.int64],
    first: NDArray[np.int64],
    count: NDArray[np.int64],
    order: NDArray[np.int64],
) -> Pairs:
    """Each of ``rows`` with ``count`` windows of ``order`` from ``first`` on, not with itself."""
    one = np.repeat(rows, count)
    offset = np.arange(len(one)) - np.repeat(np.cumsum(count) - count, count)
    other = order[np.repeat(first, count) + offset]
    return one[one != other], other[one != other]


def _neighbours(crowd: NDArray[np.int64], values: NDArray[np.float64]) -> Pairs:
    """Each window of a crowd with the next ones in the order of each column of ``values``."""
    ordered = crowd[np.argsort(values, axis=0, kind="stable")].T
    steps = range(1, min(NEIGHBOURS, len(crowd) - 1) + 1)
    one = [ordered[:, :-step].ravel() for step in steps]
    other = [ordered[:, step:].ravel() for step in steps]
    return np.concatenate(one), np.concatenate(other)
