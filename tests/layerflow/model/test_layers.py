"""Layouts: where layers lie, what is given, the eight released configurations."""

from __future__ import annotations

import pytest

from layerflow.model.layers import (
    LAYERS,
    OFFICIAL,
    Layout,
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
