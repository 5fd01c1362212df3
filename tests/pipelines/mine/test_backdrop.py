"""The backdrop of a still camera's shot, and what it does for those who stand still."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np

from layerflow.corpus.table import Corpus
from manifests.mine import MineOptions
from pipelines.inputs.listing import list_sources
from pipelines.matting.motion.backend import MotionMatting
from pipelines.mine.backdrop import (
    MAX_FRAMES,
    backdrop_times,
    find_backdrop,
    fit_backdrop,
    shared_with,
)
from pipelines.mine.job import run_mine
from pipelines.mine.plan import plan_units
from pipelines.mine.survey import survey_unit
from tests.support.matting_clips import backdrop_of, mean_iou, texture
from tests.support.mined import with_layers

Colour = tuple[int, int, int]
HEIGHT, WIDTH = 144, 216


def room() -> np.ndarray:
    """A wall with a picture on it above a floor with structure."""
    picture = np.full((HEIGHT, WIDTH, 3), (190, 186, 178), np.uint8)
    picture[90:] = texture(HEIGHT - 90, WIDTH, 4, (120, 90, 60))
    cv2.rectangle(picture, (20, 15), (60, 45), (60, 40, 30), 3)
    return picture


def person(x: int, coat: Colour, arm: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Someone at ``x`` who lifts an arm: colours [H, W, 3] and mask [H, W]."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.rectangle(mask, (x - 14, 50), (x + 14, 125), 1, -1)
    cv2.circle(mask, (x, 38), 11, 1, -1)
    end = (round(x + 14 + 26 * np.cos(arm)), round(60 + 26 * np.sin(arm)))
    cv2.line(mask, (x + 12, 60), end, 1, 9)
    cloth = np.clip(texture(HEIGHT, WIDTH, 7, coat), 0, 255).astype(np.uint8)
    return np.roll(cloth, x, axis=1), mask.astype(bool)


def scene(x: int | None, coat: Colour = (40, 60, 120), arm: float = 0.0) -> np.ndarray:
    frame = room()
    if x is not None:
        cloth, mask = person(x, coat, arm)
        frame[mask] = cloth[mask]
    return frame


def noisy(frames: list[np.ndarray], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    stack = np.stack(frames) + rng.normal(0, 1.5, (len(frames), HEIGHT, WIDTH, 3))
    return np.clip(np.rint(stack), 0, 255).astype(np.uint8)


def shot() -> np.ndarray:
    """Three people at the same place one after the other, and an empty room in between."""
    coats = [(40, 60, 120)] * 6 + [(30, 30, 34)] * 6 + [(150, 60, 60)] * 5
    people = [scene(110 + i % 3, coat, arm=0.2 * i) for i, coat in enumerate(coats)]
    return noisy([*people[:6], scene(None), *people[6:12], scene(None), *people[12:], scene(None)])


def error(picture: np.ndarray, where: np.ndarray) -> float:
    return float(np.abs(picture[where].astype(int) - room()[where]).mean())


def test_the_empty_room_is_found_though_it_is_rare() -> None:
    frames = shot()
    found = find_backdrop(frames)
    assert found is not None and found.known.mean() > 0.97
    _, hidden = person(110, (0, 0, 0))
    assert error(np.median(frames, axis=0), hidden) > 30
    assert error(found.picture, hidden) < 3 and error(found.picture, ~hidden) < 2


def test_a_camera_that_adapts_its_exposure_is_followed() -> None:
    frames = shot()
    curve = np.linspace(0.75, 1.1, len(frames))
    lit = np.stack([255 * (f / 255.0) ** g for f, g in zip(frames, curve, strict=True)])
    found = find_backdrop(np.rint(lit).astype(np.uint8))
    assert found is not None and found.known.mean() > 0.95
    clip = np.rint(255 * (noisy([scene(60, arm=0.3)] * 3) / 255.0) ** 0.7).astype(np.uint8)
    fitted = fit_backdrop(found, clip)
    assert fitted is not None and fitted.tones.shape == (3, 256, 3)
    _, hidden = person(60, (0, 0, 0))
    truth = 255 * (room() / 255.0) ** 0.7
    assert np.abs(fitted.at(1)[hidden] - truth[hidden]).mean() < 5


def test_another_view_has_no_use_for_it() -> None:
    found = find_backdrop(shot())
    assert found is not None
    assert fit_backdrop(found, np.roll(noisy([scene(None)] * 2), 25, axis=2)) is None
    assert fit_backdrop(found, np.zeros((2, 64, 64, 3), np.uint8)) is None


def test_a_camera_that_pans_has_none() -> None:
    wide = texture(HEIGHT, 4 * WIDTH, 3, (120, 120, 120))
    pan = [np.ascontiguousarray(wide[:, x : x + WIDTH]) for x in range(0, 3 * WIDTH, 40)]
    assert find_backdrop(np.stack(pan)) is None
    assert find_backdrop(shot()[:3]) is None


def test_its_frames_are_spread_over_the_shot() -> None:
    times = np.arange(0, 60, 1 / 25)
    chosen = backdrop_times(times)
    assert len(chosen) == MAX_FRAMES and chosen[0] == 0 and chosen[-1] == times[-1]
    assert set(chosen) <= set(times) and list(chosen) == sorted(set(chosen))
    assert backdrop_times(times[:26]) == () and backdrop_times(np.zeros(0)) == ()


def waving(count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Someone who stands still and lifts an arm: frames and true mask."""
    arms = np.linspace(1.2, -1.0, count)
    frames = noisy([scene(110, arm=a) for a in arms], seed=1)
    return frames, np.stack([person(110, (0, 0, 0), a)[1] for a in arms])


def test_who_stands_still_is_matted_whole() -> None:
    frames, truth = waving()
    plain = MotionMatting()(frames).alpha
    helped = MotionMatting()(frames, backdrop_of(room(), len(frames))).alpha
    assert mean_iou(helped, truth) > 0.9 > mean_iou(plain, truth) + 0.2


def test_a_shadow_on_the_floor_is_no_part_of_him() -> None:
    frames, truth = waving()
    shadow = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(shadow, (135, 128), (34, 9), 0, 0, 360, 1, -1)
    shade = cv2.GaussianBlur(shadow.astype(np.float32), (0, 0), 2)[..., None]
    dark = np.rint(frames * (1 - 0.45 * shade)).astype(np.uint8)
    frames = np.where(truth[..., None], frames, dark)
    alpha = MotionMatting()(frames, backdrop_of(room(), len(frames))).alpha
    assert mean_iou(alpha, truth) > 0.85
    around = (shadow > 0) & ~cv2.dilate(truth.any(0).astype(np.uint8), np.ones((9, 9))).astype(bool)
    assert alpha[:, around].mean() < 0.1


def test_a_subject_that_never_leaves_its_place_is_not_its_own_backdrop() -> None:
    frames, truth = waving()
    behind = find_backdrop(np.concatenate([frames, frames]))
    assert behind is not None
    alpha = truth.astype(np.uint8) * 255
    fitted = fit_backdrop(behind, frames)
    assert fitted is not None and shared_with(fitted, frames, alpha) > 0.4
    assert shared_with(backdrop_of(room(), len(frames)), frames, alpha) < 0.05
    window = with_layers(frames, truth.astype(np.float32), fitted)
    assert window.plate.backdrop is None and window.scores["unseen_fraction"] > 0.5


def write(path: Path, pictures: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in noisy(pictures):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_its_frames_stay_inside_their_shot(tmp_path: Path) -> None:
    other = texture(HEIGHT, WIDTH, 9, (60, 120, 150))
    write(tmp_path / "two.mp4", [scene(None)] * 24 + [other] * 32)
    options = MineOptions(
        inputs=[str(tmp_path)], out="c", size="144x216", frames=8, fps=8, gate="off"
    )
    (unit,) = plan_units(list_sources(options.inputs), options)
    survey = survey_unit(unit.payload, options=options)
    assert [len(times) for times in survey["shots"]] == [12, 16]
    assert max(survey["shots"][0]) < 2.95 and min(survey["shots"][1]) > 2.95
    assert [window["shot"] for window in survey["windows"]] == [0, 0, 0, 1, 1, 1, 1]


def test_a_mined_video_keeps_whoever_stands_in_an_empty_room(tmp_path: Path) -> None:
    pictures = [scene(None)] * 4
    for k in range(12):
        pictures.append(scene(round(110 + 120 * max(0.0, 1 - k / 10)), arm=0.8))
    pictures += [scene(110, arm=0.8 + 0.9 * np.sin(k / 3)) for k in range(16)]
    (tmp_path / "videos").mkdir()
    write(tmp_path / "videos" / "room.mp4", pictures)
    options = MineOptions(
        inputs=[str(tmp_path / "videos")],
        out=str(tmp_path / "mined"),
        size="96x144",
        frames=8,
        fps=8,
        gate="standard",
        thresholds={"blur": (0, 1e9), "duplicate_distance": (0, 9)},
    )
    run_mine(options, workers=0, quiet=True)
    corpus = Corpus.open(tmp_path / "mined")
    standing = [i for i in range(len(corpus)) if corpus.row(i)["origin"]["start"] > 1.5]
    assert len(standing) == 2
    empty = cv2.resize(room(), (144, 96), interpolation=cv2.INTER_AREA)
    _, mask = person(110, (0, 0, 0))
    mask[:, 124:] = False  # without the arm
    body = cv2.resize(mask.astype(np.float32), (144, 96), interpolation=cv2.INTER_AREA) > 0.99
    for i in standing:
        clip = corpus.clip(i)
        assert (clip.alpha[:, body] > 127).mean() > 0.95
        hole = clip.alpha.max(0) > 127
        assert np.abs(clip.background[:, hole].astype(int) - empty[hole]).mean() < 5
