"""Near-duplicates among made windows: recall, precision, time and memory as their number grows.

    python -m bench.duplicates --windows 10000 100000 1000000

Windows are signatures of random scenes at several scales; a tenth of them come from fixed cameras
(one picture, another movement each time). Two in a hundred have a twin: graded, encoded (noise) and
a little cropped. A pair counts as found when it is reported at a distance of at most 1, and as one
to find when its true distance is at most 1.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from layerflow.cli.demo.memory import PeakMemory
from layerflow.clip import U8
from pipelines.mine.duplicates import CELLS, COLUMNS, PICTURES, ROWS, distances, find_duplicates

CAMERAS = 40
BLOCK = 50_000


def pictures(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random scenes float32 ``[count, 8, 12]``: large shapes, some detail, light from above."""
    out = np.zeros((count, ROWS, COLUMNS), np.float32)
    for cells, weight in (((2, 3), 45), ((4, 6), 25), ((8, 12), 10)):
        field = rng.standard_normal((count, *cells)).astype(np.float32) * weight
        out += field.repeat(ROWS // cells[0], 1).repeat(COLUMNS // cells[1], 2)
    return out + 120 + np.linspace(25, -25, ROWS, dtype=np.float32)[None, :, None]


def windows(rng: np.random.Generator, count: int, cameras: np.ndarray) -> U8:
    """Signatures uint8 ``[count, 480]``: three frames and the changes between them."""
    first = pictures(rng, count)
    fixed = rng.random(count) < 0.1
    first[fixed] = cameras[rng.integers(len(cameras), size=int(fixed.sum()))]
    frames = [first]
    for _ in range(2):  # something moves through some of the cells
        y, x = rng.integers(0, ROWS - 2, count), rng.integers(0, COLUMNS - 3, count)
        moved = frames[-1].copy()
        for dy in range(2):
            for dx in range(3):
                moved[np.arange(count), y + dy, x + dx] += rng.uniform(-70, 70, count)
        frames.append(moved)
    changes = [np.abs(frames[i] - frames[i + 1]) * 8 for i in (0, 1)]
    stack = np.stack([*frames, *changes], 1)
    return np.clip(np.rint(stack), 0, 255).astype(np.uint8).reshape(count, -1)


def twin(rng: np.random.Generator, signatures: U8) -> U8:
    """The same footage graded, encoded again and cropped a little."""
    cells = signatures.reshape(-1, PICTURES, ROWS, COLUMNS).astype(np.float32)
    gain = rng.uniform(0.9, 1.1, (len(cells), 1, 1, 1))
    cells[:, :3] = (cells[:, :3] - 128) * gain + 128 + rng.uniform(-15, 15, (len(cells), 1, 1, 1))
    cells[:, 3:] *= gain
    share = rng.uniform(0, 0.08, (len(cells), 1, 1, 1))  # of a cell that moves into its neighbour
    cells = cells * (1 - share) + np.roll(cells, 1, -1) * share
    cells += rng.normal(0, 1.0, cells.shape)
    return np.clip(np.rint(cells), 0, 255).astype(np.uint8).reshape(len(cells), -1)


class Figures(NamedTuple):
    """Of one run: twins that are near enough to find, and what was told."""

    near: int
    recall: float
    told: int
    others: int
    seconds: float
    memory: int


def anonymous() -> int:
    """Bytes of this process that lie in no file: what is mapped of files the system takes back when
    it needs the memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.split("\n") if "RssAnon" in line))


def measure(count: int, seed: int) -> Figures:
    """Make ``count`` windows, a fiftieth of them twins, and look for duplicates."""
    rng = np.random.default_rng(seed)
    cameras = pictures(rng, CAMERAS)
    twins = count // 50
    originals = count - twins
    with tempfile.TemporaryFile() as file:
        signatures = np.asarray(np.memmap(file, np.uint8, "w+", shape=(count, PICTURES * CELLS)))
    for start in range(0, originals, BLOCK):
        signatures[start : min(originals, start + BLOCK)] = windows(
            rng, min(BLOCK, originals - start), cameras
        )
    of = rng.choice(originals, twins, replace=False)
    signatures[originals:] = twin(rng, signatures[of])
    near = np.flatnonzero(distances(signatures[originals:], signatures[of]) <= 1)
    started = time.process_time()
    with PeakMemory(anonymous, 0.1) as memory:
        found = find_duplicates(signatures, np.arange(count))
    seconds = time.process_time() - started
    told = {later for later, (_, far) in found.items() if far <= 1}
    hit = sum(originals + int(i) in told for i in near)
    wrong = sum(later < originals for later in told)
    recall = hit / max(1, len(near))
    return Figures(len(near), recall, len(told), wrong, seconds, memory.peak)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    assert CELLS == ROWS * COLUMNS
    for number in said.windows:
        got = measure(number, said.seed)
        print(
            f"{number:>9} windows: recall {got.recall:.4f} of {got.near} twins, {got.told} told, "
            f"{got.others} of them alike by chance; {got.seconds:.1f} s CPU, "
            f"{got.memory / 2**30:.2f} GiB outside of files at most",
            flush=True,
        )
