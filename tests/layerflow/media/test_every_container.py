"""Every frame of every kind of film is the one that is shown at its time."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from layerflow.media import video
from layerflow.media.mattes import fetch_matte
from layerflow.media.reader import VideoReader
from tests.support.numbered import Kind, kinds, numbers, write

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
    decoded, decode = [], VideoReader._decoded

    def counting(self: VideoReader, packet: Any) -> list[Any]:
        decoded.append(packet)
        return decode(self, packet)

    monkeypatch.setattr(VideoReader, "_decoded", counting)
    for start in range(0, kind.count, 8):
        window = range(start, start + 8)
        assert numbers(video.fetch(path, times[window], *kind.size)) == list(window)
    assert kind.count - 4 <= len(decoded) <= kind.count + 1
    assert numbers(video.fetch(path, times[:3], *kind.size)) == [0, 1, 2]  # and back again
    write(path, kind, first=60)  # another film of that name is another film
    assert numbers(video.fetch(path, times[3:6], *kind.size)) == [63, 64, 65]


def copied(source: Path, target: Path, change: Callable[[int, Any], Any], mux: str = "") -> Path:
    """A film's packets in another file; ``change`` gives each packet back, or None to drop it."""
    options = {"avoid_negative_ts": mux} if mux else {}
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size]
        for place, packet in enumerate(packets):
            packet = change(place, packet)
            if packet is not None:
                packet.stream = stream
                made.mux(packet)
    return target


CODED = ["h264-b.mp4", "h264-open.mp4", "hevc-open.mp4", "mpeg4-b.mp4", "vp9.webm"]


@pytest.mark.parametrize(
    ("name", "end"),
    [(n, e) for n in CODED for e in ("mkv", "mp4") if (n, e) != ("vp8.webm", "mp4")],
)
def test_a_film_without_its_first_key_frame_starts_at_the_next(
    name: str, end: str, tmp_path: Path
) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    whole = write(tmp_path / name, kind)
    path = copied(whole, tmp_path / f"cut.{end}", lambda place, p: p if place >= 5 else None)
    damage: list[str] = []
    first = numbers(video.scan(path, damage=damage)[1])[0]
    assert 0 < first <= 24 and "not decodable" in damage[0]
    check(path, list(range(first, kind.count)), kind)


@pytest.mark.parametrize("end", ["mkv", "mp4", "mov"])
def test_times_count_from_the_first_frame_below_zero_and_above(end: str, tmp_path: Path) -> None:
    kind = next(kind for kind in KINDS if kind.name == "h264-b.mp4")
    whole = write(tmp_path / kind.name, kind)
    for shift in (-0.4, 7.0):

        def later(place: int, packet: Any, shift: float = shift) -> Any:
            ticks = round(shift / float(packet.time_base))
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            return packet

        path = copied(whole, tmp_path / f"shifted.{end}", later, "disabled")
        first = numbers(video.scan(path)[1])[0]
        assert first in (0, 5)  # an MP4 hides what lies before 0
        times = check(path, list(range(first, kind.count)), kind)
        assert np.abs(np.diff(times) - 1 / 12).max() < 2e-3


def test_packed_pictures_of_old_encoders_are_one_after_the_other(tmp_path: Path) -> None:
    kind = Kind("a.avi", "mpeg4", {"qscale": "2", "g": "12", "bf": "1", "b_strategy": "0"})
    with av.open(str(write(tmp_path / "a.avi", kind))) as given:
        stream = given.streams.video[0]
        pictures = [bytes(packet) for packet in given.demux(stream) if packet.size]
        kept = [pictures[0].replace(b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p\0\0\1\xb6", 1)]
        place = 1
        while place < len(pictures):
            two = pictures[place : place + 2]
            kind_of = [part[part.find(b"\0\0\1\xb6") + 4] >> 6 for part in two]
            if len(two) == 2 and kind_of[1] == 2:  # a B-picture goes with the one before it
                kept += [b"".join(two), b"\0\0\1\xb6\x50\x00\x00"]
                place += 2
            else:
                kept.append(two[0])
                place += 1
        with av.open(str(tmp_path / "packed.avi"), "w") as made:
            out = made.add_stream_from_template(stream)
            for number, data in enumerate(kept):
                packet = av.Packet(data)
                packet.pts = packet.dts = number
                packet.time_base, packet.stream = Fraction(1, 12), out
                packet.is_keyframe = number == 0
                made.mux(packet)
    times = check(tmp_path / "packed.avi", list(range(kind.count)), kind)
    assert np.abs(times - np.arange(kind.count) / 12).max() < 2e-3
