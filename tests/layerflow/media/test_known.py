"""What is known of a clip: its levels, resized and brought to the cells of the latents."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, LAYERS, U8, resize_cover
from layerflow.corpus.columns import EXTENDED_SCHEMA
from layerflow.corpus.row_check import check_row
from layerflow.media.cells import MediaError, encode_alpha, encode_color
from layerflow.media.known import (
    ALL_KNOWN,
    LEVEL,
    decode_known,
    encode_known,
    known_of,
    latent_known,
    pack_known,
    resize_known,
)
from tests.support.corpus_rows import make_row


def random_known(seed: int, shape: tuple[int, int, int], share: float = 0.03) -> U8:
    rng = np.random.default_rng(seed)
    return pack_known(*(rng.random((2, *shape)) > share))


def test_each_plane_comes_back_from_the_stored_cell_and_nothing_is_stored_where_all_is_known() -> (
    None
):
    rng = np.random.default_rng(0)
    background, foreground = rng.random((2, 5, 20, 30)) > 0.5
    known = pack_known(background, foreground)
    assert set(np.unique(known)) == {0, LEVEL, 2 * LEVEL, 3 * LEVEL}
    stored = encode_known(known, 8.0)
    assert stored is not None
    back = decode_known(stored)
    assert np.array_equal(known_of(BACKGROUND, back), background)
    assert np.array_equal(known_of(FOREGROUND, back), foreground)
    assert np.array_equal(known_of("foreground.2", back), foreground)
    assert all(known_of(layer, back).all() for layer in (ALPHA, BLENDED, "alpha.2"))
    for layer in ("effects", "alpha.effects"):  # the difference of two backgrounds
        assert np.array_equal(known_of(layer, back), background)
    assert np.array_equal(decode_known(stored, keep=[3, 1]), known[[3, 1]])
    still = encode_known(known[:1], 8.0, still=True)
    assert still is not None and np.array_equal(decode_known(still), known[:1])
    assert encode_known(np.full((2, 4, 4), ALL_KNOWN, np.uint8), 8.0) is None


def test_validate_finds_what_is_wrong_with_the_column() -> None:
    row = make_row(0)
    row["origin"]["sha256"] = "ab" * 32
    known = random_known(1, (3, 24, 32))
    assert "known" in EXTENDED_SCHEMA.names
    assert check_row(row | {"known": encode_known(known, 8.0)}, 0).problems == ()
    assert check_row(row | {"known": None}, 0).problems == ()
    wrong = {
        "other levels": encode_alpha(known // 2, 8.0),
        "lossless 8-bit grey": encode_color(np.repeat(known[..., None], 3, -1), 8.0),
        "20x32": encode_alpha(known[:, :20], 8.0),
        "2 frames": encode_alpha(known[:2], 8.0),
    }
    for said, cell in wrong.items():
        (problem,) = check_row(row | {"known": cell}, 0).problems
        assert said in problem.what
    with pytest.raises(MediaError, match="levels"):
        decode_known(wrong["other levels"])


@pytest.mark.parametrize("size", [(24, 36), (30, 30), (60, 100), (97, 121), (48, 72)])
def test_a_resized_pixel_is_known_only_if_no_unknown_pixel_changes_it(
    size: tuple[int, int],
) -> None:
    """Found by experiment: unknown pixels get other values, and what then changes is unknown."""
    known = random_known(2, (2, 48, 72))
    rng = np.random.default_rng(3)
    first = rng.random((2, 48, 72)).astype(np.float32)
    small = resize_known(known, *size)
    for layer in (BACKGROUND, FOREGROUND):
        sure = known_of(layer, known)
        changes = np.zeros(small.shape, bool)
        for value in (-1e4, 0.0, 1e4):
            other = np.where(sure, first, np.float32(value))
            a, b = (resize_cover(frames, *size) for frames in (first, other))
            changes |= np.abs(a - b) > 1e-2 * 1e4
        kept = known_of(layer, small)
        assert not (kept & changes).any()
        assert kept.sum() > 0.5 * (~changes).sum() > 0


def test_a_latent_cell_is_known_if_all_its_pixels_in_all_its_frames_are() -> None:
    known = random_known(4, (9, 16, 24), share=0.004)
    found = latent_known(known, LAYERS, 4, 8)
    assert found.shape == (4, 3, 2, 3) and found.dtype == np.uint8
    frames = [[0], [1, 2, 3, 4], [5, 6, 7, 8]]  # an odd number: the first frame stands alone
    for layer, f, y, x in itertools.product(range(4), range(3), range(2), range(3)):
        pixels = [
            known[t, 8 * y + i, 8 * x + j] // LEVEL
            for t in frames[f]
            for i in range(8)
            for j in range(8)
        ]
        bit = {0: 2, 2: 1}.get(layer, 0)
        assert found[layer, f, y, x] == all(value & bit == bit for value in pixels)
    assert 0 < found[[0, 2]].mean() < 1
    even = latent_known(known[1:], LAYERS, 4, 8)
    assert np.array_equal(even, found[:, 1:])
    each = latent_known(known, LAYERS, 1, 8)
    assert each.shape == (4, 9, 2, 3)
    assert np.array_equal(each[:, 1:5].min(1), found[:, 1])
    for bad in (known[:, :15], known[:7]):
        with pytest.raises(ValueError, match="does not divide"):
            latent_known(bad, LAYERS, 4, 8)
