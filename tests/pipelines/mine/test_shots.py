"""A shot has one subject: windows that slide, ids that last, seams that are scored."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from layerflow.clip import U8
from layerflow.corpus.splits import assign
from layerflow.corpus.table import Corpus
from layerflow.corpus.validate import check_folder
from pipelines.inputs.listing import list_sources
from pipelines.matting import Earlier, make_backend
from pipelines.matting.auto.backend import AutoMatting
from pipelines.matting.motion.subject import STRANGER, choose
from pipelines.mine.job import run_mine
from pipelines.mine.plan import plan_units
from pipelines.mine.score import seam
from pipelines.mine.shots import cut_windows
from pipelines.mine.survey import Findings, plan_survey, survey_unit
from tests.support.matting_clips import moving_disc, texture
from tests.support.mined import green_screen, options, write_video

ROOM = texture(96, 128, 5, (120, 110, 90))


def with_somebody(picture: U8, x: float, radius: int = 16, seed: int = 2) -> U8:
    """A textured round thing at ``x`` before a picture [96, 128, 3]."""
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.circle(mask, (round(x), 48), radius, 1, -1)
    skin = np.roll(texture(96, 128, seed, (190, 60, 60)), round(x), axis=1)
    return np.where(mask[..., None] > 0, skin, picture).astype(np.uint8)


def test_windows_slide_to_where_nobody_comes_or_goes() -> None:
    times = np.arange(80) / 10  # windows of 1.6 s; somebody comes at 2.0 and goes at 6.2

    def comes(start: float, end: float) -> bool:
        return any(start < moment < end for moment in (2.0, 6.2))

    plain = cut_windows(times, (0, 80), 16, 10.0)
    slid = cut_windows(times, (0, 80), 16, 10.0, None, comes)
    assert sum(comes(w.start, w.end) for w in plain) == 2
    assert len(slid) == 4 and not any(comes(w.start, w.end) for w in slid)
    assert all(a.end < b.start for a, b in itertools.pairwise(slid))
    assert cut_windows(times, (0, 80), 16, 10.0, None, lambda a, b: False) == plain
    assert cut_windows(times, (0, 16), 16, 10.0, None, lambda a, b: True) == plain[:1]


def test_no_window_is_given_up_only_to_slide() -> None:
    times = np.arange(64) / 10
    always = cut_windows(times, (0, 64), 16, 10.0, None, lambda a, b: True)
    assert always == cut_windows(times, (0, 64), 16, 10.0)
    late = cut_windows(times, (0, 48), 16, 10.0, None, lambda a, b: a < 0.1)
    assert [round(w.start, 3) for w in late] == [0.0, 1.6, 3.2]  # sliding would cost the third


def test_the_survey_sees_who_comes_before_a_still_camera(tmp_path: Path) -> None:
    places = [None] * 12 + [12, 24, 36, 48] + [56 + i % 2 for i in range(26)] + [None] * 16
    rng = np.random.default_rng(0)
    frames = [ROOM if x is None else with_somebody(ROOM, x) for x in places]
    noisy = [np.clip(f + rng.normal(0, 1, f.shape), 0, 255).astype(np.uint8) for f in frames]
    write_video(tmp_path / "a.mp4", noisy)
    (unit,) = plan_units(list_sources([str(tmp_path)]), options(tmp_path, tmp_path / "c"))
    found = Findings.of(survey_unit(unit.payload, options=options(tmp_path, tmp_path / "c")))
    plain = cut_windows(np.arange(58) / 10, (0, 58), 8, 10.0)
    for windows, crossed in ((plain, 2), (found.windows, 1)):  # he comes at 1.2 and goes at 4.2
        held = [w for w in windows if w.start < 1.15 < w.end or w.start < 4.15 < w.end]
        assert len(held) == crossed, [w.start for w in windows]
    assert len(found.windows) == len(plain) == 7  # not to slide at 1.2 saves a window


@pytest.mark.parametrize("cut", [False, True])
def test_a_shot_that_goes_on_in_the_next_span_keeps_its_subject(cut: bool, tmp_path: Path) -> None:
    other = texture(96, 128, 9, (60, 140, 170))
    frames = [with_somebody(other if cut and i >= 40 else ROOM, 20 + i) for i in range(80)]
    write_video(tmp_path / "a.mp4", frames)
    asked = options(tmp_path, tmp_path / "c", span=2.0)
    units = plan_units(list_sources([str(tmp_path)]), asked)
    assert [unit.payload["start"] for unit in units] == [0.0, 2.0, 4.0, 6.0]
    looks = [(unit, survey_unit(unit.payload, options=asked)) for unit in units]
    joined = plan_survey(looks)
    subjects = []
    for unit, look in looks:
        found = Findings.of(look)
        began = joined.get(unit.key, {}).get("joined", {})
        subjects += [found.subject(w.shot, began.get(str(w.shot))) for w in found.windows]
    first, second = ([subjects[0]] * 4), ([subjects[-1]] * 4)
    assert subjects == first + second and (subjects[0] != subjects[-1]) == cut
    alone = plan_survey(looks[1:])  # the span before was lost
    assert units[1].key not in alone and units[0].key not in joined


def test_a_seam_follows_the_flow_and_is_low_for_another_subject() -> None:
    clip = moving_disc(2, pan=0.0, speed=6.0)
    (a, b), (one, two) = clip.frames, np.rint(clip.alpha * 255).astype(np.uint8)
    apart = ((one > 127) & (two > 127)).sum() / ((one > 127) | (two > 127)).sum()
    found = seam(a, one, b, two)
    assert found is not None and found > 0.93 > apart
    assert seam(a, one, b, np.roll(two, 120, axis=1)) == 0.0
    assert seam(a, 0 * one, b, 0 * two) is None


def two_movers() -> tuple[U8, U8]:
    """A large and a small thing that walk apart, [8, 96, 128, 3], and the small one's mattes."""
    frames, mattes = [], []
    for t in range(8):
        picture = with_somebody(ROOM, 36 + 2 * t, 18)
        frames.append(with_somebody(picture, 108 - 2 * t, 11, seed=8))
        small = np.zeros((96, 128), np.uint8)
        cv2.circle(small, (108 - 2 * t, 48), 11, 255, -1)
        mattes.append(small)
    return np.stack(frames), np.stack(mattes)


def test_all_of_the_subject_before_stays_and_strangers_count_less() -> None:
    looks = np.array([0.9, 0.2, 0.1])
    scores, kept = choose(looks, [None] * 3)
    assert scores.tolist() == [0.9, 0.2, 0.1] and kept.tolist() == [True, False, False]
    scores, kept = choose(looks, [False, True, True])
    assert scores[1:].tolist() == [0.2, 0.1] and scores[0] == pytest.approx(0.9 * STRANGER)
    assert kept.tolist() == [True, True, True]  # so much more that it may be a part of it
    _, kept = choose(np.array([0.4, 0.2, 0.1]), [False, True, True])
    assert kept.tolist() == [False, True, True]


@pytest.mark.parametrize("backend", [make_backend("motion"), AutoMatting(networks=[])])
def test_the_subject_of_the_window_before_is_kept(backend) -> None:  # type: ignore[no-untyped-def]
    frames, small = two_movers()
    free = backend(frames[1:]).alpha > 0.5
    kept = backend(frames[1:], earlier=Earlier(frames[0], small[0])).alpha > 0.5
    inside = small[1:] > 0
    assert (free & ~inside).sum() > (inside.sum() / 2)  # the large one is in it
    assert (kept & inside).sum() > 0.7 * inside.sum()
    assert (kept & ~inside).sum() < 0.3 * inside.sum()


def test_clips_of_a_shot_share_subject_and_split_and_neighbours_a_seam(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    green_screen(tmp_path / "in/a.mp4", seed=1)
    green_screen(tmp_path / "in/b.mp4", seed=4)
    run_mine(options(tmp_path / "in", tmp_path / "c"), workers=0)
    assert not check_folder(tmp_path / "c")
    rows = list(Corpus.open(tmp_path / "c").rows(["id", "kind", "origin", "quality", "subject"]))
    ids = [row["subject"] for row in rows]
    assert len(rows) == 4 and ids[0] == ids[1] != ids[2] == ids[3]
    seams = [row["quality"]["seam"] for row in rows]
    assert seams[0] is None and seams[2] is None and min(seams[1], seams[3]) > 0.9
    for row in rows:  # renamed and encoded again: only the subject tells
        row["origin"] |= {"uri": row["id"], "sha256": None}
    names = assign(rows, {"train": 0.5, "test": 0.5}).names
    assert names[0] == names[1] != names[2] == names[3]
