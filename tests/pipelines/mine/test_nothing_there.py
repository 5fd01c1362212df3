"""Scenes without a subject: nothing is taken, and the reason is on record."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from layerflow import weights
from layerflow.clip import U8
from layerflow.corpus.table import Corpus
from pipelines.mine.job import run_mine
from tests.support.matting_clips import texture
from tests.support.mined import options, write_video

HEIGHT, WIDTH, FRAMES = 160, 240, 10


def still() -> list[U8]:
    """A room with furniture in it; only the sensor's noise moves."""
    room = np.full((HEIGHT, WIDTH, 3), (188, 182, 170), np.uint8)
    room[110:] = texture(50, WIDTH, 3, (120, 95, 70))
    cv2.rectangle(room, (90, 60), (150, 135), (150, 40, 40), -1)  # a red chair
    return [room] * FRAMES


def water() -> list[U8]:
    """A sky over waves that run."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    picture = texture(HEIGHT, WIDTH, 4, (60, 110, 130))
    frames = []
    for t in range(FRAMES):
        depth = np.maximum(y - 50, 0)
        shift = 0.06 * depth * np.sin(0.25 * x + 0.9 * t + 0.1 * y)
        wave = cv2.remap(picture, x + shift, y + 0.5 * shift, cv2.INTER_LINEAR, borderMode=2)
        wave[:50] = (170, 190, 220)
        frames.append(wave)
    return frames


def titles() -> list[U8]:
    """Credits that roll over a dark picture."""
    back = texture(HEIGHT, WIDTH, 5, (30, 30, 40)) // 3
    frames = []
    for t in range(FRAMES):
        frame = back.copy()
        for line, text in enumerate(("DIRECTED BY", "A. N. OTHER", "MUSIC", "NOBODY AT ALL")):
            at = (40, 60 + 34 * line - 3 * t)
            cv2.putText(frame, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.7, (245, 245, 245), 2)
        frames.append(frame)
    return frames


def crowd() -> list[U8]:
    """Two dozen people who walk to and fro on a square."""
    rng = np.random.default_rng(6)
    square = texture(HEIGHT, WIDTH, 7, (140, 135, 125))
    x, y = rng.uniform(0, WIDTH, 24), rng.uniform(20, 130, 24)
    step = rng.choice([-3.0, -2.0, 2.0, 3.0], 24)
    coats = rng.integers(20, 230, (24, 3))
    frames = []
    for t in range(FRAMES):
        frame = square.copy()
        for one in np.argsort(y):
            at = (round(x[one] + step[one] * t), round(y[one]))
            coat = tuple(int(v) for v in coats[one])
            cv2.ellipse(frame, at, (6, 15), 0, 0, 360, coat, -1)
            cv2.circle(frame, (at[0], at[1] - 19), 5, (200, 160, 130), -1)
        frames.append(frame)
    return frames


@pytest.mark.slow
@pytest.mark.parametrize("network", [False, True])
def test_scenes_without_a_subject_give_nothing_and_say_why(
    network: bool, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if network:
        pytest.importorskip("onnxruntime")
        monkeypatch.setenv(weights.HOME, str(shared / "weights"))
    rng = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    for scene in (still, water, titles, crowd):
        noisy = [f + rng.normal(0, 1.5, f.shape) for f in scene()]
        frames = [np.clip(np.rint(f), 0, 255).astype(np.uint8) for f in noisy]
        write_video(tmp_path / "in" / f"{scene.__name__}.mp4", frames)
    asked = options(
        tmp_path / "in", tmp_path / "c", matting="auto", gate="standard", size="160x240"
    )
    run_mine(asked, workers=0)
    told = {
        row["uri"]: (row["stage"], row["reason"]) for row in Corpus.open(tmp_path / "c").rejected()
    }
    print(told)
    assert sorted(told) == ["crowd.mp4", "still.mp4", "titles.mp4", "water.mp4"]
    assert len(Corpus.open(tmp_path / "c")) == 0
    assert {stage for stage, _ in told.values()} <= {"filters", "gate"}
