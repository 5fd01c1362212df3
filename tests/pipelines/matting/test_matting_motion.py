"""The weightless matting backend: registration, the cut, and whole synthetic and real clips."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.matting import make_backend
from pipelines.matting.motion.backend import MotionMatting
from pipelines.matting.motion.decide import cut
from pipelines.matting.stabilise import stabilise, unstretch
from pipelines.vision.numerics import guided_affine, push_pull, sort_first_axis
from pipelines.vision.registration import register
from tests.support.matting_clips import mean_iou, moving_disc, star_before_a_wall, texture


def gray_of(frames: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames])


def test_registration_follows_the_camera_not_the_subject() -> None:
    clip = moving_disc(count=6, pan=3.0, speed=6.0, radius=50)
    found = register(gray_of(clip.frames))
    drift = found.between(0, 5)
    assert np.abs(drift[:2, 2] - [-15, 0]).max() < 0.5
    assert np.abs(drift[:2, :2] - np.eye(2)).max() < 0.01
    assert found.static == 0 and found.residual < 0.5 and found.survival > 0.5


def test_registration_of_a_still_camera_is_exactly_the_identity() -> None:
    clip = moving_disc(count=4, pan=0.0, speed=4.0)
    found = register(gray_of(clip.frames))
    assert found.static == 1.0
    assert np.array_equal(found.between(0, 3), np.eye(3))
    blank = register(np.zeros((3, 40, 60), np.uint8))
    assert blank.static == 1.0 and blank.residual == 0.0


def test_registration_scales_to_another_size() -> None:
    clip = moving_disc(count=3, pan=4.0)
    small = register(gray_of(clip.frames))
    shift = small.scaled(2.0, 2.0).between(0, 1)[:2, 2]
    assert np.abs(shift - [-8, 0]).max() < 0.6


def test_cut_agrees_with_an_exact_minimum_cut() -> None:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    rng = np.random.default_rng(0)
    cost = rng.integers(-8, 9, (7, 9)).astype(np.float32)
    weight = rng.integers(1, 5, (2, 7, 9)).astype(np.float32)
    weight[0, :, -1] = 0
    weight[1, -1] = 0

    def energy(mask: np.ndarray) -> float:
        u = mask.astype(float)
        across = (weight[0][:, :-1] * np.abs(np.diff(u, axis=1))).sum()
        down = (weight[1][:-1] * np.abs(np.diff(u, axis=0))).sum()
        return float((cost * u).sum() + across + down)

    number = np.arange(63).reshape(7, 9)
    graph = np.zeros((65, 65), np.int32)  # 63 is the source (foreground), 64 the sink
    graph[63, :63] = np.maximum(-cost, 0).ravel()
    graph[:63, 64] = np.maximum(cost, 0).ravel()
    for a, b, w in (
        (number[:, :-1], number[:, 1:], weight[0][:, :-1]),
        (number[:-1], number[1:], weight[1][:-1]),
    ):
        graph[a, b] = w
        graph[b, a] = w
    least = maximum_flow(csr_array(graph), 63, 64).flow_value + cost[cost < 0].sum()
    mask = cut(cost, weight[0], weight[1], (cost < 0).astype(np.float32), 500) > 0.5
    assert energy(mask) == pytest.approx(least)


def test_guided_filter_snaps_a_mask_to_the_edge_of_its_guide() -> None:
    guide = np.zeros((40, 60, 3), np.float32)
    guide[:, 30:] = (0.8, 0.5, 0.3)
    mask = np.zeros((40, 60), np.float32)
    mask[:, 33:] = 1  # three pixels off

    def filtered(image: np.ndarray) -> np.ndarray:
        slope, offset = guided_affine(guide, image, 6, 1e-4)
        return (slope * guide).sum(-1) + offset

    soft = filtered(mask)
    assert soft[20, 31] > 0.5 > soft[20, 28]
    flat = np.full((40, 60), 0.25, np.float32)
    assert np.allclose(filtered(flat), flat, atol=1e-4)


def test_push_pull_keeps_what_is_known_and_continues_it() -> None:
    values = np.random.default_rng(0).uniform(0, 255, (37, 53, 3)).astype(np.float32)
    values[:, :20] = (200, 100, 50)
    weight = np.zeros((37, 53), np.float32)
    weight[:, :20] = 1
    filled = push_pull(values, weight)
    assert np.allclose(filled[:, :20], values[:, :20], atol=1e-3)
    assert np.allclose(filled, np.float32([200, 100, 50]), atol=1e-2)
    assert not push_pull(values, np.zeros_like(weight)).any()


def test_the_sorting_network_sorts() -> None:
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 3, 7, 16, 24, 37):
        stack = rng.integers(-300, 300, (count, 3, 4)).astype(np.int16)
        assert np.array_equal(sort_first_axis(stack.copy()), np.sort(stack, axis=0))


@pytest.mark.parametrize(("pan", "speed"), [(3.0, 5.0), (0.0, 5.0), (0.0, 0.7)])
def test_a_moving_disc_is_found(pan: float, speed: float) -> None:
    clip = moving_disc(pan=pan, speed=speed)
    matte = make_backend("motion")(clip.frames)
    assert matte.alpha.shape == clip.alpha.shape and matte.alpha.dtype == np.float32
    assert matte.alpha.min() >= 0 and matte.alpha.max() <= 1
    assert mean_iou(matte.alpha, clip.alpha) > 0.95
    assert np.abs(matte.alpha - clip.alpha).mean() < 5e-3
    assert matte.confidence["matte_confidence"] > 0.75
    assert matte.confidence["matte_stability"] > 0.9


def test_a_blank_wall_does_not_come_along() -> None:
    clip = star_before_a_wall()
    assert mean_iou(make_backend("motion")(clip.frames).alpha, clip.alpha) > 0.9


def test_small_frames_work() -> None:
    clip = moving_disc(count=8, size=(96, 96), pan=2.0, speed=3.0)
    assert mean_iou(make_backend("motion")(clip.frames).alpha, clip.alpha) > 0.9


@pytest.mark.parametrize("pan", [0.0, 3.0])
def test_a_scene_without_a_mover_gives_an_empty_matte(pan: float) -> None:
    clip = moving_disc(count=6, pan=pan, speed=0.0, radius=0.5)
    scene = np.stack([f.copy() for f in clip.background])
    scene = (scene + np.random.default_rng(0).normal(0, 2, scene.shape)).clip(0, 255)
    matte = make_backend("motion")(scene.astype(np.uint8))
    assert not matte.alpha.any()
    assert matte.confidence == {"matte_confidence": 0.0}


def test_impossible_clips_give_an_empty_matte() -> None:
    for shape in ((1, 64, 64, 3), (5, 8, 8, 3), (4, 64, 64, 3)):
        matte = make_backend("motion")(np.zeros(shape, np.uint8))
        assert matte.alpha.shape == shape[:3] and not matte.alpha.any()


def test_the_same_clip_gives_the_same_matte() -> None:
    clip = moving_disc(count=5)
    first, second = (MotionMatting()(clip.frames).alpha for _ in range(2))
    assert np.array_equal(first, second)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="passes >= 1"):
        make_backend("motion", passes=0)


def test_stabilise_removes_flicker_and_leaves_no_ghost() -> None:
    clip = moving_disc(count=6, pan=0.0, speed=6.0)
    rng = np.random.default_rng(0)
    level = rng.uniform(0.6, 1.0, 6).astype(np.float32)[:, None, None]
    steady = stabilise(clip.frames, clip.alpha * level)
    inside = clip.alpha > 0.99
    wobble = [
        np.std([a[i].mean() for a, i in zip(x, inside, strict=True)])
        for x in (clip.alpha * level, steady)
    ]
    assert wobble[1] < 0.8 * wobble[0]
    far = ~cv2.dilate((clip.alpha > 0).astype(np.uint8).max(0), np.ones((9, 9))).astype(bool)
    assert steady[:, far].max() < 0.02
    still = texture(60, 80, 5, (120, 120, 120))
    empty = stabilise(np.stack([still] * 3), np.zeros((3, 60, 80), np.float32))
    assert not empty.any()


def test_unstretch_restores_the_range() -> None:
    mask = np.array([[0, 128, 255]], np.uint8)
    assert np.allclose(unstretch(mask, 0.2, 0.7), [[0.201, 0.452, 0.7]], atol=1e-3)
    assert np.allclose(unstretch(mask, 0.3, 0.3), 0.3)
    assert not unstretch(mask, float("nan"), float("nan")).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dog", "lucia", "rhino", "mallard-fly"])
def test_annotated_video(shared: Path, name: str) -> None:
    import av

    def read(path: Path, kind: str) -> np.ndarray:
        with av.open(str(path)) as container:
            return np.stack([f.to_ndarray(format=kind) for f in container.decode(video=0)])

    folder = shared / "media" / "davis"
    frames, mask = read(folder / f"{name}.mp4", "rgb24"), read(folder / f"{name}.mask.mkv", "gray")
    assert mean_iou(make_backend("motion")(frames).alpha, mask / 255) > 0.78
