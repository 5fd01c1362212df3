"""Every frame of every kind of film is the one that is shown at its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered import Kind, kinds, numbers, write

from layerflow import video
from layerflow.film import Film
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


@pytest.mark.parametrize("name", ["h264-long.mp4", "h264-refresh.ts", "mpeg4-b.avi"])
def test_windows_one_after_the_other_decode_every_packet_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    path = write(tmp_path / name, kind)
    times = video.frame_times(path)
    decoded, decode = [], Film._decoded

    def counting(self: Film, packet: Any) -> list[Any]:
        decoded.append(packet)
        return decode(self, packet)

    monkeypatch.setattr(Film, "_decoded", counting)
    for start in range(0, kind.count, 8):
        window = range(start, start + 8)
        assert numbers(video.fetch(path, times[window], *kind.size)) == list(window)
    assert kind.count - 4 <= len(decoded) <= kind.count + 1
    assert numbers(video.fetch(path, times[:3], *kind.size)) == [0, 1, 2]  # and back again
    write(path, kind, first=60)  # another film of that name is another film
    assert numbers(video.fetch(path, times[3:6], *kind.size)) == [63, 64, 65]
