"""What the step of matting gives to a backend."""

from __future__ import annotations

import numpy as np

from layerflow.clip import U8
from pipelines.matting import ALPHA, BACKDROP
from pipelines.mine.layers import doubt_backdrop, matte_frames
from tests.support.matting_clips import backdrop_of
from tests.support.mined import KnownMatte, window_of

HALF = np.repeat(np.float32([[0, 1]]), 16, axis=0).repeat(8, axis=1)[None].repeat(2, axis=0)


def grey(level: int) -> U8:
    return np.full((2, 16, 16, 3), level, np.uint8)


def test_a_backend_gets_what_it_needs_and_no_more() -> None:
    behind, given = backdrop_of(grey(90)[0], 2), np.full((2, 16, 16), 7, np.uint8)
    plain, keyed, all_of_it = (KnownMatte(HALF, *n) for n in ((), (BACKDROP,), (BACKDROP, ALPHA)))
    for backend in (plain, keyed, all_of_it):
        window = window_of(grey(200), backend, behind)
        window.given_matte = given if ALPHA in backend.needs else None
        matte_frames(window)
        assert (window.alpha == 255 * HALF).all()
    assert [b.given[0][1] for b in (plain, keyed, all_of_it)] == [None, behind, behind]
    assert plain.given[0][0].shape == keyed.given[0][0].shape == (2, 16, 16, 3)
    assert (all_of_it.given[0][0][..., 3] == given).all()


def test_a_backdrop_that_equals_the_subject_is_dropped_and_the_clip_matted_again() -> None:
    for backdrop_level, left in ((90, 1), (200, 2)):
        backend = KnownMatte(HALF, BACKDROP)
        window = window_of(grey(200), backend, backdrop_of(grey(backdrop_level)[0], 2))
        matte_frames(window)
        doubt_backdrop(window)
        assert len(backend.given) == left
        assert (window.backdrop is None) == (left == 2) == (backend.given[-1][1] is None)
