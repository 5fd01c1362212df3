"""Stacks of layers: of one clip for any set, changed alike, and as the network sees them."""

from __future__ import annotations

import numpy as np
import pytest

from layerflow.clip import LAYERS, LayeredClip, on_grey, resize_clip, to_float
from layerflow.layer_set import layer_set
from layerflow.media.layer_stack import LayerStack, join, shared, stack_of
from tests.support.several import COLOURS, several


def clip(frames: int = 2) -> LayeredClip:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (3, frames, 12, 16, 3), dtype=np.uint8)
    return LayeredClip(colours[0], rng.integers(0, 256, colours.shape[1:4], np.uint8), *colours[1:])


def two() -> LayerStack:
    made, objects = several(2)
    frames = {"background": made.background, "blended": made.blended}
    for item, place in zip(objects, ("", ".2"), strict=True):
        assert item.colour is not None
        frames |= {f"foreground{place}": item.colour, f"alpha{place}": item.amodal}
    prompts = {"foreground": "box 0", "foreground.2": "box 1", "blended": "both"}
    return LayerStack(layer_set("rgbax3"), frames, prompts)


def test_one_foreground_looks_to_the_network_as_it_always_did() -> None:
    sample = clip()
    alpha = np.repeat(to_float(sample.alpha)[..., None], 3, axis=-1)
    ink = on_grey(sample.foreground, sample.alpha)
    rest = to_float(sample.background), to_float(sample.blended)
    four = np.stack([ink, alpha, *rest])
    assert stack_of(sample).pixels().tobytes() == four.tobytes()
    plain = stack_of(sample, layer_set("rgb"))
    assert plain.names == ("foreground", "background", "blended")
    assert plain.pixels().tobytes() == np.stack([ink, *rest]).tobytes()
    wide = stack_of(sample, layer_set("rgbax2"))
    assert wide.names == LAYERS  # absent ones are in no sequence
    assert wide.pixels().tobytes() == four.tobytes()


def test_a_stack_is_resized_as_a_clip_is() -> None:
    sample = clip()
    small, known = stack_of(sample).resized(6, 7), resize_clip(sample, 6, 7)
    for name in stack_of(sample).names:
        assert np.array_equal(small.layer(name), known.layer(name))
    assert small.size == (6, 7)


def test_several_foregrounds_lie_on_grey_each_with_its_own_matte() -> None:
    stack = two()
    assert stack.names[:4] == ("foreground", "alpha", "foreground.2", "alpha.2")
    assert stack.foregrounds == ("foreground", "foreground.2") and len(stack.names) == 6
    pixels = stack.pixels()
    assert pixels.shape == (6, 4, 32, 40, 3)
    inside, outside = (0, 12, 16), (0, 30, 38)  # of both boxes; of none
    np.testing.assert_allclose(pixels[(2, *inside)], np.array(COLOURS[1]) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(pixels[(0, *inside)], np.array(COLOURS[0]) / 127.5 - 1, atol=1e-6)
    assert (pixels[(2, *outside)] == 0).all() and (pixels[(3, *outside)] == -1).all()
    assert (pixels[(3, *inside)] == 1).all()
    flipped = stack.each(lambda frames: frames[:, :, ::-1]).take([3, 0])
    assert np.array_equal(flipped.pixels(), pixels[:, [3, 0], :, ::-1])
    assert np.abs(stack.recomposed().astype(int) - stack.layer("blended")).max() <= 1


def test_joined_foregrounds_are_one_by_the_over_operator() -> None:
    made, _ = several(2)
    one = two().joined()
    assert np.array_equal(one.alpha, made.alpha) and one.prompts["foreground"] == "box 1, box 0"
    seen = made.alpha > 0
    assert np.array_equal(one.foreground[seen], made.foreground[seen])
    assert np.abs(one.recomposed().astype(int) - made.blended).max() <= 1
    half, full = (np.full((1, 1, 1), level, np.uint8) for level in (128, 255))
    red, blue = (np.full((1, 1, 1, 3), colour, np.uint8) for colour in ((180, 0, 0), (0, 0, 100)))
    colour, alpha = join([(red, full), (blue, half)])
    assert alpha.tolist() == [[[255]]] and colour[0, 0, 0].tolist() == [90, 0, 50]
    colour, alpha = join([(red, half), (blue, half)])  # 128/255 over 128/255
    assert alpha[0, 0, 0] == round(255 * (1 - (127 / 255) ** 2))
    assert colour[0, 0, 0].tolist() == [60, 0, 67]  # shares .25 and .502 of .752


def test_surplus_objects_are_joined_from_behind() -> None:
    assert [list(part) for part in shared(4, 2)] == [[0, 1, 2], [3]]
    assert [list(part) for part in shared(3, 3)] == [[0], [1], [2]]
    assert [list(part) for part in shared(2, 8)] == [[0], [1]]
    assert [list(part) for part in shared(3, 1)] == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"alpha.2": None}, "each with its matte"),
        ({"foreground": None, "alpha": None}, "from the first one on"),
        ({"alpha": np.zeros((4, 32, 41), np.uint8)}, "alpha must be uint8"),
        ({"foreground.4": np.zeros((4, 32, 40, 3), np.uint8)}, "rgbax3 has"),
    ],
)
def test_layers_that_do_not_fit_are_refused(change: dict[str, np.ndarray], says: str) -> None:
    frames = {k: v for k, v in (dict(two().frames) | change).items() if v is not None}
    with pytest.raises(ValueError, match=says):
        LayerStack(layer_set("rgbax3"), frames)
