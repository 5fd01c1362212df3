"""Scores without ground truth, and the quality gate."""

from __future__ import annotations

import numpy as np
import pytest

from layerflow.corpus.scores import QUALITY_FIELDS
from pipelines.gates import GATES, judge
from pipelines.mine.score import score_clip, score_frames
from pipelines.vision.colour import straight_foreground
from pipelines.vision.plate import Plate, clean_plate
from tests.support.matting_clips import Truth, moving_disc


@pytest.fixture(scope="module")
def clip() -> Truth:
    return moving_disc(count=8, pan=0.0, speed=9.0, radius=24)


@pytest.fixture(scope="module")
def plate(clip: Truth) -> Plate:
    return clean_plate(clip.frames, clip.alpha)


def scores_of(clip: Truth, alpha: np.ndarray, plate: Plate) -> dict[str, float]:
    colour = straight_foreground(clip.frames, alpha, plate.background)
    return score_clip(clip.frames, colour, alpha, plate, {"matte_confidence": 0.9, "else": 1.0})


def test_a_true_matte_scores_well(clip: Truth, plate: Plate) -> None:
    scores = scores_of(clip, clip.alpha, plate)
    assert set(scores) <= set(QUALITY_FIELDS)
    assert scores["matte_confidence"] == 0.9
    assert scores["recomposition_error"] < 0.3
    assert scores["outside_fidelity"] == 0
    assert scores["ghost"] < 0.1
    assert scores["components"] == 1 and scores["border_contact"] == 0
    assert scores["area_mean"] == pytest.approx(float(clip.alpha.mean()))
    assert scores["area_cv"] < 0.01
    assert scores["warp_iou"] > 0.9 and scores["flicker"] < 0.08
    assert scores["newcomers"] < 0.05
    assert scores["camera_static"] == 1
    assert judge(scores, "strict") is None


def test_a_subject_left_in_the_background_is_a_ghost(clip: Truth, plate: Plate) -> None:
    left = Plate(
        clip.frames, plate.hole, plate.seen, 0.0, "filled", registration=plate.registration
    )
    assert scores_of(clip, clip.alpha, left)["ghost"] == pytest.approx(1, abs=0.01)


def test_a_flickering_matte_and_a_changing_area_show(clip: Truth, plate: Plate) -> None:
    alpha = clip.alpha.copy()
    alpha[1::2] = 0
    scores = scores_of(clip, alpha, plate)
    assert scores["flicker"] > 0.3 and scores["warp_iou"] < 0.1
    assert scores["area_min"] == 0 and scores["area_cv"] == pytest.approx(1, abs=0.01)
    assert judge(scores, "loose") == "area_min 0 below 0.001"


def test_what_joins_the_matte_from_nowhere_shows(clip: Truth, plate: Plate) -> None:
    alpha = clip.alpha.copy()
    side = round(float(clip.alpha[0].sum()) ** 0.5 / 2)  # a quarter of the subject's area
    alpha[-1, 4 : 4 + side, 4 : 4 + side] = 1
    assert scores_of(clip, alpha, plate)["newcomers"] == pytest.approx(0.2, abs=0.03)
    alpha = clip.alpha.copy()
    alpha[-1, :side, :side] = 1  # came in from outside
    assert scores_of(clip, alpha, plate)["newcomers"] < 0.05


def test_soft_and_split_mattes_show(clip: Truth, plate: Plate) -> None:
    assert scores_of(clip, clip.alpha * 0.8, plate)["soft_fraction"] == 1
    split = clip.alpha.copy()
    split[:, 76:84] = 0
    assert scores_of(clip, split, plate)["components"] == 2
    edge = clip.alpha.copy()
    edge[:, :, :10] = 1
    assert scores_of(clip, edge, plate)["border_contact"] > 0.15


def test_an_empty_matte_is_scored_and_rejected(clip: Truth) -> None:
    nothing = np.zeros_like(clip.alpha)
    scores = scores_of(clip, nothing, clean_plate(clip.frames, nothing))
    assert all(np.isfinite(v) for v in scores.values())
    assert scores["area_mean"] == 0
    for gate in ("loose", "standard", "strict"):
        assert "area_mean 0 below" in str(judge(scores, gate))
    assert judge(scores, "off") is None


def test_frame_scores_see_motion_blur_and_exposure() -> None:
    still = score_frames(moving_disc(count=3, pan=0.0, speed=0.0, noise=0.0).frames)
    panned = score_frames(moving_disc(count=3, pan=4.0).frames)
    assert still["motion"] < 0.3 and 8 < panned["motion"] < 16  # 4 px of 160 lines is 12 of 480
    black = score_frames(np.zeros((2, 64, 64, 3), np.uint8))
    assert black["exposure_low"] == 1 and black["blur"] == 0
    white = score_frames(np.full((1, 64, 64, 3), 255, np.uint8))
    assert white["exposure_high"] == 1 and white["motion"] == 0


def test_gates_grow_stricter_and_name_known_scores() -> None:
    assert list(GATES) == ["off", "loose", "coarse", "standard", "strict"]
    for weak, strong in (("loose", "standard"), ("standard", "strict")):
        for name, (low, high) in GATES[weak].items():
            assert name in QUALITY_FIELDS
            assert GATES[strong][name][0] >= low and GATES[strong][name][1] <= high


def test_judge_says_why_and_ignores_what_is_absent() -> None:
    assert judge({"area_mean": 0.001}, "standard") == "area_mean 0.001 below 0.01"
    assert judge({"area_mean": 0.9}, {"area_mean": (0.0, 0.5)}) == "area_mean 0.9 above 0.5"
    assert judge({"area_mean": None, "ghost": float("nan")}, "strict") is None
    with pytest.raises(ValueError, match="off, loose, coarse, standard, strict"):
        judge({}, "severe")
    with pytest.raises(ValueError, match="beauty"):
        judge({}, {"beauty": (0.0, 1.0)})


def test_layers_must_agree(clip: Truth, plate: Plate) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        score_clip(clip.frames, clip.frames[:, :-1], clip.alpha, plate)
