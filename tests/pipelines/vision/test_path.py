"""Paths of pasted foregrounds: draws, easing, caps, cut sides, the camera's motion."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pytest

from layerflow.media.frame_rate import choose_frames
from layerflow.seeds import (
    first_of_block,
    generator,
    in_blocks,
    in_turns,
)
from manifests.paste import PasteOptions
from pipelines.inputs.sources import Foreground
from pipelines.paste.camera import measure_camera, pan_over_still
from pipelines.paste.crops import cut_sides
from pipelines.vision.path import draw_path, ease, follow, keep_cuts_outside, matrices

STILL = np.tile(np.eye(3), (8, 1, 1))


def options(**more: Any) -> PasteOptions:
    said = {"foregrounds": ["f"], "backgrounds": ["b"], "out": "o", "count": 1, "size": "120x160"}
    return PasteOptions(**{**said, "frames": 8, **more})


def foreground(size: int = 60, frames: int = 1, cut: frozenset[str] = frozenset()) -> Foreground:
    rgba = np.full((frames, size, size, 4), 255, np.uint8)
    record: dict[str, Any] = {}
    frame = (float(size), float(size))
    return Foreground(rgba, frame, (0.0, 0.0), 1.0, cut, 8.0 * (frames > 1), "it", record)


def draws(count: int = 40, camera: np.ndarray = STILL, **more: Any) -> list[Any]:
    cut = more.pop("cut", frozenset())
    said = options(**more)
    return [
        draw_path(generator(0, i, "path"), foreground(cut=cut), said, camera) for i in range(count)
    ]


def test_a_draw_depends_on_seed_index_purpose_and_attempt_alone() -> None:
    one = generator(3, 5, "path").random(4)
    assert np.array_equal(one, generator(3, 5, "path").random(4))
    for other in ((4, 5, "path", 0), (3, 6, "path", 0), (3, 5, "grain", 0), (3, 5, "path", 1)):
        assert not np.array_equal(one, generator(*other).random(4))


def test_every_foreground_is_used_about_equally_and_in_blocks() -> None:
    used = [in_blocks(7, i, 50, 8) for i in range(50)]
    assert sorted(np.bincount(used, minlength=8).tolist()) == [6] * 6 + [7] * 2
    assert sum(a != b for a, b in itertools.pairwise(used)) == 7
    firsts = [i for i in range(50) if first_of_block(i, 50, 8)]
    assert [used[i] for i in firsts] == list(dict.fromkeys(used))
    few = [in_blocks(7, i, 5, 8) for i in range(5)]
    assert len(set(few)) == 5
    assert all(first_of_block(i, 5, 8) for i in range(5))


def test_backgrounds_come_in_turns() -> None:
    turns = [in_turns(1, i, 6) for i in range(18)]
    assert [sorted(turns[k : k + 6]) for k in (0, 6, 12)] == [list(range(6))] * 3
    assert turns[:6] != turns[6:12]


def test_ease_starts_and_ends_where_it_should_and_never_goes_back() -> None:
    s = np.linspace(0, 1, 50)
    for strength in (0.0, 0.5, 1.0):
        eased = ease(s, strength)
        assert eased[0] == 0 and eased[-1] == pytest.approx(1)
        assert (np.diff(eased) > 0).all()
    assert ease(s, 1.0)[1] < 0.2 * s[1]


def test_speed_is_drawn_in_its_range_and_capped() -> None:
    paths = draws(speed=(0.01, 0.02), max_speed=0.022, zoom=0, turn=0)
    steps = [np.hypot(*np.diff(path.poses[:, :2], axis=0).T) for path in paths]
    assert max(step.max() for step in steps) <= 0.022 * 160 + 1e-6
    assert all(0.006 * 160 <= step.mean() <= 0.022 * 160 for step in steps)


def test_area_is_drawn_in_its_range() -> None:
    areas = [
        (path.poses[:, 2] ** 2).mean() * 60 * 60 / (120 * 160)
        for path in draws(area=(0.1, 0.2), zoom=0, max_upscale=4)
    ]
    assert 0.099 <= min(areas) < 0.12 < 0.17 < max(areas) <= 0.201


def test_a_small_source_is_never_enlarged_beyond_the_cap() -> None:
    assert (
        max(p.poses[:, 2].max() for p in draws(area=(0.5, 0.6), zoom=0, max_upscale=1.1)) < 1.1001
    )


def test_the_whole_way_is_smooth() -> None:
    for path in draws(10):
        jerk = np.diff(path.poses[:, :2], n=3, axis=0)
        assert np.abs(jerk).max() < 0.5


@pytest.mark.parametrize("side", ["bottom", "top", "left", "right"])
def test_cut_sides_stay_outside(side: str) -> None:
    """Where the source's picture cut the object, the clip's border must cut it as well."""
    for path in draws(20, cut=frozenset({side}), flip=False, zoom=0.2):
        half = 60 * path.poses[:, 2] / 2
        x, y = path.poses[:, 0], path.poses[:, 1]
        edge = {
            "bottom": y + half - 120,
            "right": x + half - 160,
            "top": half - y,
            "left": half - x,
        }
        assert edge[side].min() > 0


def test_keep_cuts_outside_moves_the_whole_path_at_once() -> None:
    poses = np.array([[50.0, 60.0, 1.0, 0.0], [52.0, 61.0, 1.0, 0.0]])
    moved = keep_cuts_outside(poses, np.array([20.0, 20.0]), frozenset({"bottom"}), (160, 120))
    assert np.allclose(np.diff(moved, axis=0), np.diff(poses, axis=0))
    assert moved[0, 1] + 10 == pytest.approx(120.5)


def test_cut_sides_are_recognised() -> None:
    alpha = np.zeros((1, 40, 40), np.uint8)
    alpha[:, 10:, 10:30] = 255
    assert cut_sides(alpha) == {"bottom"}
    alpha[:, :, 10:30] = 255  # from top to bottom: a pole
    assert cut_sides(alpha) == set()
    assert cut_sides(np.zeros((1, 9, 9), np.uint8)) == set()


def test_an_object_that_stands_still_moves_with_the_background() -> None:
    camera = np.stack(
        [np.array([[1.01**t, 0, 2.0 * t], [0, 1.01**t, -t], [0, 0, 1]]) for t in range(8)]
    )
    poses = np.tile([50.0, 40.0, 0.5, 0.1], (8, 1))
    moved = follow(poses, camera, anchor=0)
    expected = cv2.perspectiveTransform(np.full((1, 1, 2), (50.0, 40.0)), camera[7])[0, 0]
    assert np.allclose(moved[7, :2], expected)
    assert moved[7, 2] == pytest.approx(0.5 * 1.01**7)
    assert moved[7, 3] == pytest.approx(0.1)


def test_follow_turns_with_a_turning_camera() -> None:
    c, s = np.cos(0.2), np.sin(0.2)
    camera = np.stack([np.eye(3), np.array([[c, -s, 5], [s, c, 3], [0, 0, 1]])])
    moved = follow(np.tile([10.0, 20.0, 1.0, 0.0], (2, 1)), camera, anchor=0)
    assert moved[1, 3] == pytest.approx(0.2)


def test_matrices_put_the_middle_where_the_pose_says() -> None:
    poses = np.array([[30.0, 20.0, 0.5, 0.3]])
    for mirrored in (False, True):
        matrix = matrices(poses, (41, 81), mirrored, (0.5, 0.5))[0]
        middle = matrix @ [(81 * 0.5 - 1) / 2, (41 * 0.5 - 1) / 2, 1]
        assert np.allclose(middle, (30, 20))
        assert np.sign(np.linalg.det(matrix[:, :2])) == (-1 if mirrored else 1)


def test_frames_of_a_moving_foreground_are_distinct_and_at_the_rate() -> None:
    rng = generator(0, 0, "frames")
    chosen = choose_frames(40, 24.0, 8, 8.0, rng)
    assert np.diff(chosen).tolist() == [3] * 7
    with pytest.raises(ValueError, match="a clip needs 22"):
        choose_frames(20, 24.0, 8, 8.0, rng)
    with pytest.raises(ValueError, match="no distinct frames"):
        choose_frames(100, 8.0, 8, 24.0, rng)


def textured(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(1).uniform(0, 255, (height // 6, width // 6, 3))
    return cv2.resize(noise.astype(np.float32), (width, height)).clip(0, 255).astype(np.uint8)


def test_the_camera_over_a_still_moves_as_its_homographies_say() -> None:
    film, camera = pan_over_still(
        textured(300, 400), (120, 160), 8, 0.01, generator(2, 0, "camera")
    )
    moved = cv2.warpPerspective(film[0], camera[7], (160, 120))
    inside = np.s_[25:-25, 25:-25]
    difference = np.abs(moved[inside].astype(int) - film[7][inside]).mean()
    still = np.abs(film[0][inside].astype(int) - film[7][inside]).mean()
    assert difference < 3 < 10 < still


def test_a_still_camera_gives_equal_frames() -> None:
    film, camera = pan_over_still(textured(90, 200), (120, 160), 4, 0.0, generator(2, 1, "camera"))
    assert (film == film[0]).all()
    assert np.allclose(camera, np.eye(3))


def test_the_camera_of_frames_is_measured_in_the_clips_pixels() -> None:
    film, truth = pan_over_still(textured(600, 800), (240, 320), 6, 0.01, generator(4, 0, "camera"))
    found, static, residual = measure_camera(film, (120, 160))
    half = np.diag([0.5, 0.5, 1.0])
    half[:2, 2] = -0.25
    expected = half @ truth[5] @ np.linalg.inv(half)
    corners = np.array([[[0.0, 0], [159, 0], [0, 119], [159, 119]]])
    error = cv2.perspectiveTransform(corners, found[5]) - cv2.perspectiveTransform(
        corners, expected
    )
    assert np.abs(error).max() < 0.7
    assert static < 0.5 and residual < 0.5
