"""Listing, shots, windows and prompts of the mine job."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.inputs.listing import list_sources
from pipelines.inputs.prompts import (
    TEMPLATE,
    entry_for,
    merged,
    prompts_of,
    read_prompt_table,
    sidecar,
)
from pipelines.mine.plan import time_spans
from pipelines.mine.shots import cut_windows, find_shots, why_no_window


def test_listing_is_sorted_relative_and_stays_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "in", tmp_path / "outside"
    for folder in (root / "b", root / ".hidden", outside, tmp_path / "empty"):
        folder.mkdir(parents=True)
    for path in (root / "z.mp4", root / "b" / "a.MOV", root / "note.txt", outside / "x.mp4"):
        path.touch()
    (root / ".hidden" / "h.mp4").touch()
    (root / "link.mp4").symlink_to(outside / "x.mp4")
    sources = list_sources([str(root), str(root / "z.mp4")])
    assert [s.uri for s in sources] == ["b/a.MOV", "z.mp4"]
    (root / "z.mask.mkv").touch()
    (root / "lonely.mask.mkv").touch()
    assert [s.uri for s in list_sources([str(root)])] == ["b/a.MOV", "lonely.mask.mkv", "z.mp4"]
    with pytest.raises(ValueError, match="no such file"):
        list_sources([str(root / "absent")])
    with pytest.raises(ValueError, match="no input file"):
        list_sources([str(tmp_path / "empty")])


def test_cuts_are_found_between_scenes() -> None:
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 255, (1, 36, 64, 3)).repeat(20, axis=0) for _ in range(3)]
    thumbs = np.concatenate(scenes).astype(np.uint8)
    assert find_shots(thumbs, 24.0) == [(0, 20), (20, 40), (40, 60)]


def test_a_video_of_exactly_n_frames_is_one_window() -> None:
    times = np.arange(16) / 24
    windows = cut_windows(times, (0, 16), 16, 24.0)
    assert [w.times for w in windows] == [tuple(times)]


def test_windows_do_not_overlap_and_keep_the_rate() -> None:
    times = np.arange(300) / 29.97
    windows = cut_windows(times, (0, 300), 16, 8.0)
    assert len(windows) == 5  # 10.01 s hold five windows of 2 s
    for a, b in itertools.pairwise(windows):
        assert a.end < b.start
    for window in windows:
        steps = np.diff(window.times)
        assert (steps > 0).all()
        assert np.abs(steps - 1 / 8).max() < 1 / 29.97


def test_a_slow_video_gives_no_window_rather_than_repeated_frames() -> None:
    times = np.arange(100) / 6
    assert cut_windows(times, (0, 100), 16, 8.0) == []
    assert "6.00 frames/s" in why_no_window(times, [(0, 100)], 16, 8.0)
    assert "longest shot lasts 1" in why_no_window(times, [(0, 10)], 16, 8.0)


def test_a_window_does_not_cross_a_shot_border() -> None:
    times = np.arange(60) / 10
    windows = [w for shot in ((0, 25), (25, 60)) for w in cut_windows(times, shot, 16, 8.0)]
    assert all(not (w.start < 2.45 < w.end) for w in windows)
    assert [round(w.start, 2) for w in windows] == [0.0, 2.5]


def test_spans_cover_everything_once() -> None:
    assert time_spans(10, 60) == [(0, 1e12)]
    assert time_spans(139, 60) == [(0, 60), (60, 120), (120, 1e12)]
    assert time_spans(0, 60) == [(0, 1e12)]


def test_prompts_come_from_table_then_sidecar_then_template(tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    assert prompts_of(sidecar(video)) == TEMPLATE
    (tmp_path / "clip.txt").write_text("a dog runs\n")
    assert prompts_of(sidecar(video))["blended"] == "a dog runs"
    (tmp_path / "clip.json").write_text(json.dumps({"foreground": "a  dog", "other": 1}))
    assert prompts_of(sidecar(video))["foreground"] == "a dog"
    table = tmp_path / "t.csv"
    table.write_text("video,foreground\nclip.mp4,a cat\n")
    said = merged(entry_for("clip.mp4", read_prompt_table(table)), sidecar(video))
    assert prompts_of(said) == {
        "foreground": "a cat",
        "background": TEMPLATE["background"],
        "blended": "a dog runs",
    }


@pytest.mark.parametrize("content", ["{", '{"licence": 3}', "[" * 100_000])
def test_a_bad_sidecar_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text(content)
    with pytest.raises(ValueError, match=r"clip\.json"):
        sidecar(tmp_path / "clip.mp4")


def test_a_table_without_a_video_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"clip": "a"}\n')
    with pytest.raises(ValueError, match="row 1 has no video column"):
        read_prompt_table(tmp_path / "t.jsonl")


def test_tables_globs_and_urls_are_inputs(tmp_path: Path) -> None:
    from pipelines.inputs.listing import local_copy

    (tmp_path / "v").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "v" / name).write_bytes(name.encode())
    table = tmp_path / "t.csv"
    table.write_text("video,foreground,licence\nv/b.mp4,a cat,CC0-1.0\n")
    (source,) = list_sources([str(table)])
    assert (source.uri, source.row) == ("v/b.mp4", {"foreground": "a cat", "licence": "CC0-1.0"})
    assert [s.uri for s in list_sources([str(tmp_path / "v" / "*.mp4")])] == ["a.mp4", "b.mp4"]
    url = f"file://{tmp_path}/v"
    remote = list_sources([url])
    assert [Path(s.uri).name for s in remote] == ["a.mp4", "b.mp4"]
    with local_copy(remote[0].location, 100) as path:
        assert path.read_bytes() == b"a.mp4"
    assert not path.exists()
    with pytest.raises(ValueError, match="over the limit"), local_copy(remote[0].location, 2):
        pass
    table.write_text("video\n../../etc/passwd\n")
    with pytest.raises(ValueError, match="leads out"):
        list_sources([str(table)])


def test_black_bars_are_found_and_left_out(tmp_path: Path) -> None:
    from pipelines.mine.frames import find_bars

    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 255, (5, 72, 128, 3), dtype=np.uint8)
    assert find_bars(thumbs) is None
    boxed = thumbs.copy()
    boxed[:, :9] = 16
    boxed[:, 63:] = 16
    box = find_bars(boxed)
    assert box is not None
    assert box[0] == pytest.approx(10 / 72) and box[1] == pytest.approx(62 / 72)
    assert box[2:] == (0.0, 1.0)
    assert find_bars(np.zeros_like(thumbs)) is None
    night = np.zeros_like(thumbs)
    night[:, 30:40, 60:70] = 255  # one lamp in the dark is not a letterboxed picture
    assert find_bars(night) is None


def test_fades_are_trimmed_from_shots() -> None:
    from pipelines.mine.frames import trim_fades

    thumbs = np.random.default_rng(0).integers(0, 255, (20, 36, 64, 3), dtype=np.uint8)
    thumbs[:4] = 0
    thumbs[17:] = 250
    assert trim_fades(thumbs, (0, 20)) == (4, 17)
    assert trim_fades(thumbs, (0, 4)) == (0, 4)
