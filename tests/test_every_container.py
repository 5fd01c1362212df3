"""Every frame of every kind of film is the one that is shown at its time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numbered import Kind, kinds, numbers, write

from layerflow import video
from layerflow.mattes import fetch_matte

KINDS = list(kinds())


def check(path: Path, expected: list[int], kind: Kind) -> np.ndarray:
    """Windows at the start, in the middle and at the end, scattered and single frames."""
    times, thumbs = video.scan(path)
    assert numbers(thumbs) == expected
    assert times[0] == 0
    count = len(times)
    windows = [slice(0, 6), slice(count // 2 - 3, count // 2 + 3), slice(count - 6, count)]
    windows += [slice(count - 1, count), slice(1, count, 11), slice(count // 3, count // 3 + 1)]
    for window in windows:
        got = video.fetch(path, times[window], *kind.size)
        assert numbers(got) == expected[window]
    for window in windows[:3]:
        assert numbers(fetch_matte(path, times[window], *kind.size)) == expected[window]
    middle = windows[1]
    late, thumbs = video.scan(path, times[middle][0], times[middle][-1] + 1e-3)
    assert numbers(thumbs) == expected[middle]
    assert (late == times[middle]).all()
    frames, _ = video.read_frames(path, times=times[middle][::-1], size=kind.size)
    assert numbers(frames) == expected[middle][::-1]
    return times


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_frame_is_the_one_of_its_time(kind: Kind, tmp_path: Path) -> None:
    path = write(tmp_path / kind.name, kind)
    times = check(path, list(range(kind.count)), kind)
    stamps = np.arange(kind.count) / kind.fps
    if kind.stamps is not None:
        stamps = np.array(kind.stamps) / 1000
    if kind.suffix not in ("h264", "hevc", "m4v"):  # which know no times
        assert np.abs(times - stamps).max() < 2e-3


def test_the_matrix_is_large_enough() -> None:
    assert len({(kind.suffix, kind.codec, kind.name) for kind in KINDS}) >= 40
