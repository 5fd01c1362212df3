"""Contact sheets and mosaics: every layer in its place, whatever the clips look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from layerflow.clip import LayeredClip, checkerboard, composite
from layerflow.media.cells import decode_png
from layerflow.media.contact_sheet import contact_sheet, describe, four_up, save_sheet, shown_layer


def make_clip(
    frames: int = 5, height: int = 24, width: int = 36, kind: str = "pasted"
) -> LayeredClip:
    foreground = np.full((frames, height, width, 3), (200, 30, 30), np.uint8)
    background = np.full((frames, height, width, 3), (20, 160, 60), np.uint8)
    alpha = np.zeros((frames, height, width), np.uint8)
    alpha[:, height // 4 : -height // 4, width // 4 : -width // 4] = 255
    blended = composite(foreground, alpha, background)
    prompts = {"foreground": "a red box", "background": "green", "blended": "a red box on green"}
    return LayeredClip(foreground, alpha, background, blended, prompts, kind=kind)


def test_four_up_places_the_layers() -> None:
    clip = make_clip()
    frames = four_up(clip)
    assert frames.shape == (5, 48, 72, 3)
    assert np.array_equal(frames[:, :24, :36], clip.blended)
    assert np.array_equal(frames[:, 24:, 36:], clip.background)
    assert np.array_equal(frames[:, 24:, :36, 1], clip.alpha)
    board = checkerboard(24, 36)
    assert np.array_equal(frames[0, 0, 36], board[0, 0])  # transparent: the board shows
    assert tuple(frames[0, 12, 36 + 18]) == (200, 30, 30)


def test_sheet_shows_each_layer_of_each_clip() -> None:
    clips = [make_clip(), make_clip(1, 40, 30, "image")]
    sheet = contact_sheet(clips, columns_per_layer=3, height=60)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    strip = 3 * 90 + 8
    assert sheet.shape[1] == 4 * strip + 8
    first_row = sheet[: sheet.shape[0] // 2]
    for column, colour in (
        (0, (200, 30, 30)),
        (1, (200, 30, 30)),
        (2, (255,) * 3),
        (3, (20, 160, 60)),
    ):
        part = first_row[:, column * strip + 8 : (column + 1) * strip]
        assert (part == colour).all(axis=2).sum() > 1000, column


def test_moments_cover_the_clip() -> None:
    clip = make_clip(9)
    clip.blended[:] = (np.arange(9) * 25)[:, None, None, None]
    sheet = contact_sheet([clip], labels=[""], columns_per_layer=3, height=30)
    middle = sheet[-30]
    assert [int(middle[8 + 45 * k + 5, 0]) for k in range(3)] == [0, 100, 200]


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    label = "<script>\x00\u202e" + "x" * 100_000 + "\n" + "\u4f60\u597d \U0001f600"
    path = save_sheet(tmp_path / "deep" / "sheet.png", [make_clip()], [label])
    assert decode_png(path.read_bytes()).shape[2] == 3
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_describe_names_what_is_known() -> None:
    text = describe(make_clip(), "abcd", {"flicker": 0.0123456, "ghost": None})
    assert "abcd" in text and "flicker 0.01235" in text and "ghost" not in text
    assert "foreground: a red box" in text


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least one clip"):
        contact_sheet([])
    with pytest.raises(ValueError, match="2 labels for 1"):
        contact_sheet([make_clip()], ["a", "b"])


def test_alpha_is_shown_as_grey() -> None:
    shown = shown_layer(make_clip(), "alpha")
    assert shown.shape == (5, 24, 36, 3) and set(np.unique(shown)) == {0, 255}
