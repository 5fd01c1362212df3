"""Untrusted video: limits, damage, crashes and hangs end as a MediaError."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from bench.decoders import witness
from layerflow.media import reader, video
from layerflow.media.cells import MediaError, encode_color
from layerflow.media.decode import Decoder


def counter_video(path: Path, frames: int = 24, fps: int = 12, codec: str = "libx264") -> Path:
    """Frame k has brightness 8k + 10, so that any frame tells its index."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"bf": "2", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        texture = np.random.default_rng(0).integers(-8, 9, (48, 64, 1))
        texture -= texture.mean().round().astype(int)
        for k in range(frames):
            picture = np.clip(8 * k + 10 + texture, 0, 255).astype(np.uint8).repeat(3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def index_of(frames: np.ndarray) -> list[int]:
    return [round((float(f.mean()) - 10) / 8) for f in frames]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_frames_by_time_are_exact_with_b_frames(name: str, tmp_path: Path) -> None:
    path = counter_video(tmp_path / name)
    with Decoder() as decoder:
        info = decoder.probe(path)
        assert (info.num_frames, info.height, info.width) == (24, 48, 64)
        assert info.fps == pytest.approx(12, rel=0.02)
        times, thumbs = decoder.scan(path)
        assert index_of(thumbs) == list(range(24))
        picked = decoder.fetch(path, times[3:24:5], 48, 64)
        assert index_of(picked) == [3, 8, 13, 18, 23]
        late_times, late = decoder.scan(path, 1.0, 1.5)
        assert index_of(late) == [12, 13, 14, 15, 16, 17]
        assert late_times[0] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("name", "agrees"), [("a.mp4", True), ("a.ts", False)])
def test_decord_is_believed_only_where_it_shows_what_pyav_shows(
    tmp_path: Path, name: str, agrees: bool
) -> None:
    path = counter_video(tmp_path / name)
    times, _ = video.scan(path)
    assert (witness(path, times, 48, 64) is not None) == agrees
    assert index_of(video.fetch(path, times, 48, 64)) == list(range(24))


def test_bad_files_say_what_is_wrong(tmp_path: Path) -> None:
    good = counter_video(tmp_path / "good.mp4").read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    expected = {
        "empty.mp4": "empty",
        "text.mp4": "not a readable video",
        "cut.mp4": "not a readable video",
        "sound.mp4": "no video stream",
        "missing.mp4": "cannot be opened",
    }
    with Decoder() as decoder:
        for name, words in expected.items():
            with pytest.raises(MediaError, match=words):
                decoder.probe(tmp_path / name)
        assert decoder.probe(tmp_path / "good.mp4").num_frames == 24  # the child is still there


def test_a_file_cut_in_half_gives_the_frames_before_the_cut(tmp_path: Path) -> None:
    data = counter_video(tmp_path / "a.mkv").read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: int(len(data) * 0.6)])
    with Decoder() as decoder:
        times, thumbs = decoder.scan(cut)
    assert 2 <= len(times) < 24
    assert index_of(thumbs) == list(range(len(times)))


def test_limits_hold_before_anything_is_decoded(tmp_path: Path) -> None:
    path = counter_video(tmp_path / "a.mp4")
    for limits, words in (
        (video.Limits(max_bytes=100), "bytes is over"),
        (video.Limits(max_pixels=100), "pixels"),
        (video.Limits(max_seconds=1), "over the limit of 1 s"),
        (video.Limits(max_frames=5), "more than 5 frames"),
    ):
        with Decoder(limits) as decoder, pytest.raises(MediaError, match=words):
            decoder.probe(path)


def test_a_crash_is_an_error_and_the_next_request_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = counter_video(tmp_path / "a.mp4")
    with Decoder() as decoder:
        decoder.probe(path)
        child = decoder._child
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        child.ask(b"{}")  # it has a request, and does not get to it
        os.kill(child.pid, signal.SIGSEGV)
        os.kill(child.pid, signal.SIGCONT)
        with pytest.raises(MediaError, match="signal SIGSEGV"):
            child.answer()
        assert decoder.probe(path).num_frames == 24
        os.kill(child.pid, signal.SIGKILL)  # while it is idle
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert decoder.probe(path).num_frames == 24


def test_a_hang_ends_at_the_deadline(tmp_path: Path) -> None:
    pipe = tmp_path / "endless.mp4"
    os.mkfifo(pipe)
    keeper = os.open(pipe, os.O_RDWR)  # a writer that never writes: reading waits for ever
    try:
        started = time.monotonic()
        with Decoder(deadline=2) as decoder, pytest.raises(MediaError):
            decoder.read_frames(pipe)
            decoder.probe(pipe)
        assert time.monotonic() - started < 20
    finally:
        os.close(keeper)


def test_a_silent_child_is_killed_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "sleeper"
    script.write_text("#!/bin/sh\nsleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    started = time.monotonic()
    with Decoder(deadline=1) as decoder, pytest.raises(MediaError, match="longer than 1 s"):
        decoder.probe(tmp_path / "a.mp4")
    assert time.monotonic() - started < 10


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    path = tmp_path / "vfr.mkv"
    stamps = [0, 40, 80, 200, 240, 500, 540, 1000]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        from fractions import Fraction

        stream.codec_context.time_base = Fraction(1, 1000)
        for k, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * k + 10, np.uint8), "rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    times, _ = video.scan(path)
    assert np.allclose(times * 1000, stamps, atol=1)
    picked = video.fetch(path, [times[2], times[5], times[7]], 48, 64)
    assert index_of(picked) == [2, 5, 7]


def test_encoded_cells_are_readable_as_files(tmp_path: Path) -> None:
    frames = np.full((4, 48, 64, 3), 90, np.uint8)
    path = tmp_path / "cell.mp4"
    path.write_bytes(encode_color(frames, 8))
    back, _ = video.read_frames(path)
    assert np.abs(back.astype(int) - frames).max() <= 2


def test_real_edge_cases_are_upright(shared: Path) -> None:
    folder = shared / "media" / "edge_cases"
    with Decoder() as decoder:
        upright = decoder.probe(folder / "video_90.mov")
        assert upright.height > upright.width
        flat = decoder.probe(folder / "video_0.mov")
        assert flat.height < flat.width
        times, _ = decoder.scan(folder / "av1_video.mkv")
        assert len(times) == 125
        damage: list[str] = []
        times, _ = decoder.scan(folder / "corrupted.mp4", damage=damage)
        assert len(times) == 28  # from here on every picture shows the damage
        assert damage


def test_windows_of_one_file_look_at_it_once_and_at_a_changed_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = counter_video(tmp_path / "a.mp4", frames=12)
    read, looked = reader.read_packets, []

    def counting(container: Any, stream: Any, max_frames: int) -> Any:
        looked.append(container.name)
        return read(container, stream, max_frames)

    monkeypatch.setattr(reader, "read_packets", counting)
    times, _ = video.scan(path)
    for start in (0, 4, 8):
        video.fetch(path, times[start : start + 4], 48, 64)
    assert looked == [path.name]
    counter_video(path, frames=20)
    assert index_of(video.fetch(path, video.scan(path)[0][16:], 48, 64)) == [16, 17, 18, 19]
    assert looked == [path.name, path.name]
