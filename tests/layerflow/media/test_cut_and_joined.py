"""Recordings that were cut by bytes or joined: no frame of a wrong time, nothing lost unsaid."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from layerflow.corpus.table import Corpus
from layerflow.media import video
from layerflow.media.cells import MediaError
from manifests.mine import MineOptions
from pipelines.mine.job import run_mine
from tests.support.numbered import (
    B3,
    HEVC_CLOSED,
    HEVC_OPEN,
    OPEN,
    REFRESH,
    X264,
    Kind,
    numbered,
    numbers,
    write,
)

B2 = {"qscale": "2", "g": "12", "bf": "2"}
KINDS = [
    Kind("b.ts", "libx264", {**X264, **B3}, fps=25),
    Kind("open.ts", "libx264", {**X264, **OPEN}, fps=25),
    Kind("refresh.ts", "libx264", {**X264, **REFRESH}, fps=25),
    Kind("hevc.ts", "libx265", HEVC_OPEN, fps=25),
    Kind("hevc-closed.ts", "libx265", HEVC_CLOSED, fps=25),
    Kind("mpeg2.ts", "mpeg2video", B2, fps=25),
    Kind("mpeg4.ts", "mpeg4", B2, fps=25),
    Kind("mpeg2.mpg", "mpeg2video", B2, fps=25),
]
named = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def cut(path: Path, share: float) -> bytes:
    """What is left of a file without its beginning, from a packet's border on."""
    data, unit = path.read_bytes(), 188 if path.suffix == ".ts" else 1
    return data[int(len(data) * share) // unit * unit :]


def read(path: Path) -> tuple[np.ndarray, list[int], list[str], list[float]]:
    """Times, numbers, damage and splices; and every way to read a window agrees with them."""
    damage: list[str] = []
    splices: list[float] = []
    times, thumbs = video.scan(path, damage=damage, splices=splices)
    shown = numbers(thumbs)
    assert (np.diff(times) > 0).all()
    for start in {0, len(times) // 3, len(times) // 2, max(0, len(times) - 5)}:
        window = slice(start, start + 5)
        assert numbers(video.fetch(path, times[window], 48, 64)) == shown[window]
    for place in range(0, len(times), 7):
        assert numbers(video.fetch(path, times[[place]], 48, 64)) == [shown[place]]
    return times, shown, damage, splices


@named
def test_a_recording_without_its_beginning_starts_at_the_first_whole_frame(
    kind: Kind, tmp_path: Path
) -> None:
    whole = write(tmp_path / kind.name, kind)
    path = tmp_path / f"cut-{kind.name}"
    path.write_bytes(cut(whole, 0.3))
    times, shown, damage, splices = read(path)
    assert shown == list(range(shown[0], 48)) and 0 < shown[0] < 36
    assert np.abs(times - np.arange(len(times)) / 25).max() < 2e-3
    assert "not decodable" in damage[0] and not splices


@named
@pytest.mark.parametrize("second", ["later", "earlier", "again", "cut"])
def test_a_joined_recording_goes_on_after_the_splice(
    kind: Kind, second: str, tmp_path: Path
) -> None:
    one = write(tmp_path / f"one-{kind.name}", kind)
    late = Kind(kind.name, kind.codec, kind.options, fps=25, mux={"output_ts_offset": "5000"})
    two = write(tmp_path / f"two-{kind.name}", late, first=60)
    path = tmp_path / kind.name
    parts = {
        "later": (one.read_bytes(), two.read_bytes()),
        "earlier": (two.read_bytes(), one.read_bytes()),
        "again": (one.read_bytes(), one.read_bytes()),
        "cut": (one.read_bytes(), cut(one, 0.3)),
    }
    path.write_bytes(b"".join(parts[second]))
    times, shown, damage, splices = read(path)
    assert times[-1] < 4 and video.probe(path).seconds < 4 and video.duration(path) < 4
    first, then = list(range(48)), list(range(60, 108))
    wanted = {"later": [*first, *then], "earlier": [*then, *first], "again": [*first, *first]}
    if second in wanted:
        assert shown == wanted[second] and not damage
        assert splices == [times[48]]
    else:
        at = int(times.searchsorted(splices[0]))
        head, tail = shown[:at], shown[at:]  # the last picture may have a piece of another in it
        assert head[:46] == first[:46] and set(head) <= set(first) and head == sorted(head)
        assert tail == list(range(tail[0], 48)) and 0 < tail[0] < 36
        assert "decod" in damage[0] and len(splices) == 1


def test_a_jump_is_a_shot_and_no_junk(tmp_path: Path) -> None:
    kind = KINDS[0]
    one = write(tmp_path / "one.ts", kind, pictures=[scene(k, 200) for k in range(24)])
    mux = {"output_ts_offset": "5000"}
    late = Kind(kind.name, kind.codec, kind.options, fps=25, mux=mux)
    two = write(tmp_path / "two.ts", late, pictures=[scene(k + 1, 200) for k in range(24)])
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "joined.ts").write_bytes(one.read_bytes() + two.read_bytes())
    (folder / "back.ts").write_bytes(two.read_bytes() + one.read_bytes())
    options = MineOptions.model_validate(
        {"inputs": [str(folder)], "out": str(tmp_path / "out"), "size": "48x64", "frames": 8}
        | {"fps": 12.5, "matting": "chroma", "gate": "off"}
    )
    summary = run_mine(options, workers=0, quiet=True)
    starts = [row["origin"]["start"] for row in Corpus.open(tmp_path / "out").rows(["origin"])]
    assert np.allclose(sorted(starts), [0, 0, 0.96, 0.96], atol=1e-3)  # no window over a splice
    assert summary.rejected == 0


def scene(k: int, ground: int) -> np.ndarray:
    """A red square that moves over plain green."""
    picture = np.full((48, 64, 3), (20, ground, 40), np.uint8)
    picture[12:36, 6 + k : 24 + k] = (200, 40, 60)
    return picture


def test_a_long_pause_is_kept_and_makes_no_junk(tmp_path: Path) -> None:
    stamps = (*range(0, 1000, 40), *range(300_000, 301_000, 40))
    kind = Kind("pause.mkv", "libx264", {**X264, **B3}, stamps=stamps, count=50)
    path = write(tmp_path / kind.name, kind)
    times, shown, damage, splices = read(path)
    assert shown == list(range(50)) and not damage and not splices
    assert times[25] == pytest.approx(300, abs=1e-3)
    assert [len(part) for part in video.scan(path, 60, 120)] == [0, 0]


def test_a_header_that_lies_about_the_length_is_over_the_limit(tmp_path: Path) -> None:
    stamps = (*range(0, 1000, 40), *range(3_000_000, 3_001_000, 40))
    kind = Kind("long.mkv", "libx264", X264, stamps=stamps, count=50)
    path = write(tmp_path / kind.name, kind)
    with pytest.raises(MediaError, match="over the limit of 600 s"):
        video.scan(path, limits=video.Limits(max_seconds=600))


def test_a_frame_size_that_changes_is_a_splice(tmp_path: Path) -> None:
    kind = KINDS[0]
    one = write(tmp_path / "one.ts", kind)
    large = [numbered(60 + k, 96, 128) for k in range(24)]
    two = write(tmp_path / "two.ts", kind, pictures=large)
    path = tmp_path / "joined.ts"
    path.write_bytes(one.read_bytes() + two.read_bytes())
    times, shown, _, splices = read(path)
    assert shown == [*range(48), *range(60, 84)] and splices == [times[48]]
    with pytest.raises(MediaError, match="frame size changes"):
        video.read_frames(path)


def test_a_damaged_packet_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ts", Kind("a.ts", "libx264", {**X264, **B3}, fps=25))
    data = bytearray(path.read_bytes())
    packet = len(data) // 188 // 2
    while data[packet * 188 + 1] & 0x5F or data[packet * 188 + 2] != 0:
        packet += 1  # one that carries the middle of a picture (PID 256)
        if data[packet * 188 + 1] & 0x5F == 1 and data[packet * 188 + 2] == 0:
            break
    del data[packet * 188 : packet * 188 + 188]
    path.write_bytes(bytes(data))
    times, shown, damage, splices = read(path)
    assert shown == sorted(set(shown)) and 30 < len(shown) < 48
    assert damage and splices
    assert np.abs(times - np.array(shown) / 25).max() < 2e-3


@pytest.mark.parametrize(
    ("codec", "options", "least"),
    [("mpeg2video", B2, 36), ("mpeg4", B2, 36), ("libx264", {**X264, **REFRESH}, 20)],
)
def test_a_picture_that_the_decoder_made_up_is_not_shown_nor_what_follows_on_it(
    codec: str, options: dict[str, str], least: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.mkv", Kind("a.mkv", codec, options, fps=25))
    times, thumbs = video.scan(path)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data, (place, size) = bytearray(path.read_bytes()), packets[20]
    data[place + size // 2 : place + size - 4] = bytes(size - size // 2 - 4)
    path.write_bytes(bytes(data))
    damage: list[str] = []
    left, shown = video.scan(path, damage=damage)
    assert least <= len(left) < 48 and damage
    assert (shown == thumbs[np.isin(times, left)]).all()
    with pytest.raises(MediaError, match="could not be decoded"):
        video.fetch(path, times[~np.isin(times, left)], 48, 64)


def test_a_stream_that_was_not_announced_does_no_harm(tmp_path: Path) -> None:
    kind = Kind("a.ts", "libx264", {**X264, **B3})
    late = {"mpegts_start_pid": "500", "mpegts_pmt_start_pid": "5000"}
    path = write(tmp_path / "a.ts", kind)
    other = write(tmp_path / "b.ts", Kind("b.ts", "libx264", {**X264, **B3}, mux=late))
    path.write_bytes(path.read_bytes() + other.read_bytes())
    assert read(path)[1] == list(range(48))


@pytest.mark.parametrize("end", ["mp4", "flv"])
def test_what_a_container_cannot_read_of_joined_files_is_said(end: str, tmp_path: Path) -> None:
    kind = Kind(f"a.{end}", "libx264", {**X264, "crf": "4"})
    one = write(tmp_path / kind.name, kind)
    damage: list[str] = []
    video.scan(one, damage=damage)
    assert not damage
    path = tmp_path / f"joined.{end}"
    path.write_bytes(one.read_bytes() * 8)
    assert numbers(video.scan(path, damage=damage)[1]) == list(range(48))
    assert "not read" in damage[0]
