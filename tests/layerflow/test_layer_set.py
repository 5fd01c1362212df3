"""Sets of layers: names, order, mattes, prompts and the over operator."""

from __future__ import annotations

import numpy as np
import pytest

from layerflow.clip import LAYERS, PROMPTED
from layerflow.layer_set import LayerSet, compose, layer_set, matte_of, prompt_number


def test_rgba_is_the_four_stored_layers() -> None:
    assert layer_set("rgba").layers == LAYERS
    assert layer_set("rgba").prompted == PROMPTED
    assert [prompt_number(name) for name in PROMPTED] == [0, 1, 2]


def test_rgb_has_no_matte() -> None:
    assert layer_set("rgb").layers == PROMPTED
    assert layer_set("rgb").mattes == {}


def test_foregrounds_stand_back_to_front_before_the_background() -> None:
    found = layer_set("rgbax2+effects")
    assert found.layers == (
        *("foreground", "alpha", "foreground.2", "alpha.2"),
        *("effects", "alpha.effects", "background", "blended"),
    )
    assert found.prompted == ("foreground", "foreground.2", "background", "blended")
    assert found.over == ("effects", "foreground", "foreground.2")
    assert matte_of("effects") == "alpha.effects"


def test_a_prompt_has_the_same_number_in_every_set() -> None:
    numbers = [prompt_number(name) for name in layer_set("rgbax8").prompted]
    assert numbers == [0, 3, 4, 5, 6, 7, 8, 9, 1, 2]


def test_a_sample_may_have_fewer_foregrounds() -> None:
    found = layer_set("rgbax3")
    assert found.with_foregrounds(1) == LAYERS
    assert found.with_foregrounds(3) == found.layers
    for count in (0, 4):
        with pytest.raises(ValueError, match="1 to 3 foregrounds"):
            found.with_foregrounds(count)


@pytest.mark.parametrize("name", ["", "RGBA", "rgbx2", "rgbax1", "rgbax9", "rgb+effects", "rgba "])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="layers must be"):
        LayerSet(name)


def test_the_over_operator_puts_the_last_in_front() -> None:
    """By hand: 0.5 of 100 over (0.25 of 40 over 80) = 50 + 0.5 * (10 + 60) = 85."""
    grey = lambda value: np.full((1, 1, 3), value, np.float32)  # noqa: E731
    layers = {
        "background": grey(80.0),
        "foreground": grey(40.0),
        "alpha": np.full((1, 1), 0.25, np.float32),
        "foreground.2": grey(100.0),
        "alpha.2": np.full((1, 1), 0.5, np.float32),
    }
    assert compose(layers, ("foreground", "foreground.2")).tolist() == grey(85.0).tolist()
