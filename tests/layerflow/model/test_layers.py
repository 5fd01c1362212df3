"""Layouts: where layers lie, what is given, the eight released configurations."""

from __future__ import annotations

import pytest

from layerflow.layer_set import layer_set
from layerflow.model.layers import (
    LAYERS,
    OFFICIAL,
    Layout,
    given_layers,
    native_layout,
    official_task,
    single_layout,
)


def test_native_layout_slices_and_positions():
    layout = native_layout(12)
    assert layout.layers == LAYERS
    assert layout.slices["alpha"] == slice(3, 6)
    assert layout.slices["blended"] == slice(9, 12)
    assert layout.frame_layers == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    assert layout.positions == (0, 1, 2) * 4
    continuous = native_layout(12, shared_positions=False)
    assert continuous.positions == tuple(range(12))


def test_given_frames():
    layout = native_layout(8)
    assert layout.given_frames(()) == (False,) * 8
    assert layout.given_frames({"foreground", "alpha"}) == (True,) * 4 + (False,) * 4
    with pytest.raises(ValueError, match="nothing to generate"):
        layout.given_frames(LAYERS)
    with pytest.raises(ValueError, match="the layers are"):
        layout.given_frames(["matte"])


def test_frames_must_divide():
    with pytest.raises(ValueError, match="do not divide"):
        native_layout(13)


def test_layers_keep_their_order():
    with pytest.raises(ValueError, match="in this order"):
        Layout(("blended", "foreground"), (1, 1))


def test_single_layout_is_plain_video():
    layout = single_layout(13)
    assert layout.num_frames == 13 and layout.prompts == ("blended",)


# name -> latents, given span, generated latents, prompts, position frames, pixels, embedding
RELEASED = {
    "gen_rgb": (12, None, 12, 3, 13, 48, False),
    "gen_rgba": (16, None, 16, 3, 16, 64, True),
    "seg_rgb": (12, (10, 12), 10, 2, 13, 48, False),
    "seg_rgba": (16, (12, 16), 12, 2, 16, 64, False),
    "fg2bg_rgb": (12, (0, 4), 8, 3, 13, 48, False),
    "fg2bg_rgba": (17, (0, 9), 8, 3, 17, 65, True),
    "bg2fg_rgb": (12, (4, 8), 8, 3, 13, 48, False),
    "bg2fg_rgba": (17, (9, 13), 13, 3, 17, 65, True),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configurations(name):
    latents, span, generated, prompts, positions, pixels, embedding = RELEASED[name]
    task = official_task(name)
    assert task.layout.num_frames == latents
    assert task.layout.given_span == span
    assert task.layout.given_frames().count(False) == generated
    assert len(task.layout.prompts) == prompts
    assert task.position_frames == positions
    assert task.pixel_frames == pixels
    assert task.layer_embedding is embedding
    assert task.layout.positions == tuple(range(latents))


def test_released_alpha_slices():
    slices = OFFICIAL["fg2bg_rgba"].layout.slices
    assert slices == {
        "foreground": slice(0, 5),
        "alpha": slice(5, 9),
        "background": slice(9, 13),
        "blended": slice(13, 17),
    }


def test_the_known_fault_is_marked():
    assert "last 2 of the 4" in (OFFICIAL["seg_rgb"].fault or "")
    assert all(task.fault is None for name, task in OFFICIAL.items() if name != "seg_rgb")


def test_unknown_configuration_lists_the_names():
    with pytest.raises(ValueError, match="bg2fg_rgba"):
        official_task("gen_rgbx")


def test_a_layout_of_two_foregrounds_counts_rows_by_its_set():
    whole = layer_set("rgbax2").layers
    layout = native_layout(12, whole, of="rgbax2")
    assert layout.frame_layers == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5) == layout.frame_slots
    assert layout.prompts == ("foreground", "foreground.2", "background", "blended")
    assert layout.prompt_slots == (0, 1, 2, 3)


def test_a_sample_with_fewer_foregrounds_is_a_shorter_sequence():
    present = layer_set("rgbax2").with_foregrounds(1)
    layout = native_layout(8, present, of="rgbax2")
    assert layout.layers == LAYERS and layout.num_frames == 8
    assert layout.frame_slots == (0, 0, 1, 1, 2, 2, 3, 3)
    assert layout.frame_layers == (0, 0, 1, 1, 4, 4, 5, 5)  # rows of the set: none of its second
    assert layout.prompt_slots == (0, 2, 3)
    assert layout.key != native_layout(8).key  # tables of another set are other tables


def test_a_layout_holds_no_layer_of_another_set():
    with pytest.raises(ValueError, match="in this order"):
        native_layout(10, layer_set("rgbax2").layers[:5], of="rgba")


def test_tasks_of_several_foregrounds():
    two = layer_set("rgbax2+effects").layers
    assert given_layers("fg2bg", two) == ("foreground", "alpha", "foreground.2", "alpha.2")
    assert given_layers("bg2fg", two) == ("background",)
    assert given_layers("decompose", two) == ("blended",)
    said = given_layers("background+foreground.2+alpha.2", two)
    assert said == ("foreground.2", "alpha.2", "background")
    assert given_layers("fg2bg", layer_set("rgb").layers) == ("foreground",)
    with pytest.raises(ValueError, match="unknown task"):
        given_layers("foreground.2", LAYERS)
    with pytest.raises(ValueError, match="unknown task"):
        given_layers("foreground+background+blended", layer_set("rgb").layers)
