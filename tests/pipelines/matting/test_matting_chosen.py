"""Subjects that are chosen by hand, and each of several, in the backends that can tell."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.matting import Chosen, Matte
from pipelines.matting.auto.backend import AutoMatting
from pipelines.matting.motion.backend import MotionMatting
from pipelines.matting.sam2 import Sam2Matting
from tests.support.matting_clips import mean_iou, moving_disc, two_movers
from tests.support.salient import Salient
from tests.support.tiny_networks import disc_mask

CLIP = two_movers(6)
SMALL_WORK = {"work_area": 96 * 160, "passes": 2, "segments": 150}


def motion() -> MotionMatting:
    return MotionMatting(**SMALL_WORK)


def auto(answer: np.ndarray) -> AutoMatting:
    """Motion and a network that sees the same as ``answer``, float [T, H, W]."""
    backend = AutoMatting(networks=[Salient(CLIP.frames, answer)])
    backend.motion = motion()
    return backend


def box(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = (96, 160)) -> np.ndarray:
    region = np.zeros(size, bool)
    region[y0:y1, x0:x1] = True
    return region


AROUND_SMALL = box(112, 56, 145, 90)


@pytest.mark.parametrize(
    "backend",
    [
        motion(),
        auto(CLIP.large),
        auto(np.maximum(CLIP.large, CLIP.small)),
    ],
    ids=["motion", "auto, a network that sees the other", "auto, one that sees both"],
)
def test_a_box_or_a_point_takes_the_one_that_would_not_be_taken_alone(backend) -> None:  # type: ignore[no-untyped-def]
    free = backend(CLIP.frames).alpha
    assert mean_iou(free, CLIP.small) < 0.4
    for chosen in (
        Chosen(0, AROUND_SMALL),
        Chosen(0, None, points=((128.0, 72.0),)),
        Chosen(5, None, points=((120.0, 72.0),)),
        Chosen(0, box(0, 0, 160, 96), points=((128.0, 72.0),), away=((32.0, 32.0),)),
    ):
        matte = backend(CLIP.frames, chosen=chosen)
        assert matte.confidence["matte_agreement"] > 0.5  # a network that looks elsewhere is silent
        assert mean_iou(matte.alpha, CLIP.small) > 0.9, chosen.points
        assert (matte.alpha * CLIP.large).sum() < 0.05 * CLIP.large.sum()


@pytest.mark.parametrize("chosen", [
    Chosen(0, box(60, 30, 95, 60)), Chosen(0, None, points=((80.0, 48.0),)),
    Chosen(0, AROUND_SMALL, points=((32.0, 32.0),)),
])  # fmt: skip
def test_where_nothing_is_nothing_is_found(chosen: Chosen) -> None:
    for backend in (motion(), auto(CLIP.large)):
        assert not backend(CLIP.frames, chosen=chosen).alpha.any()


def test_a_box_sets_off_by_colour_what_neither_moves_nor_is_salient() -> None:
    clip = moving_disc(6, size=(96, 144), pan=0.0, speed=0.0)
    region = disc_mask(96, 144, 72, 48, 20) > 0
    chosen = Chosen(0, box(48, 24, 96, 72, (96, 144)))
    assert region.any() and not motion()(clip.frames).alpha.any()
    matte = motion()(clip.frames, chosen=chosen)
    assert mean_iou(matte.alpha, clip.alpha) > 0.8
    assert matte.confidence["matte_agreement"] == matte.confidence["motion_contrast"] == 0


@pytest.mark.parametrize(
    "backend",
    [motion(), auto(np.maximum(CLIP.large, CLIP.small))],
)
def test_each_subject_has_a_matte(backend) -> None:  # type: ignore[no-untyped-def]
    matte = backend(CLIP.frames, several=True)
    assert len(matte.others) == 1
    assert mean_iou(matte.alpha, CLIP.large) > 0.9
    assert mean_iou(matte.others[0].alpha, CLIP.small) > 0.9
    agree = [one.confidence["matte_agreement"] for one in (matte, *matte.others)]
    assert min(agree) > 0.6  # what a source says of the others counts against none
    one = moving_disc(6, size=(96, 144), pan=0.0)
    alone = motion()(one.frames, several=True)
    assert alone.others == () and mean_iou(alone.alpha, one.alpha) > 0.85


def test_sam2_hands_the_choice_to_its_finder() -> None:
    asked = []

    class Finder:
        name = version = licence = "finder"
        needs = frozenset({"chosen"})

        def __call__(self, frames, backdrop=None, chosen=None):  # type: ignore[no-untyped-def]
            asked.append(chosen)
            return Matte(np.zeros(frames.shape[:3], np.float32))

    backend = object.__new__(Sam2Matting)
    backend.finder = Finder()
    chosen = Chosen(0, AROUND_SMALL)
    backend(CLIP.frames, chosen=chosen)
    backend(CLIP.frames)
    assert asked == [chosen, None]
