"""Sampling a model of several foregrounds: what may be given, what is asked, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.clip import U8
from layerflow.media.cells import decode_alpha, decode_png, encode_png
from layerflow.model import sample as module
from layerflow.model.sample import SampleRequest, run_sample
from pipelines.view.source import open_source
from tests.support.several import several


class Pipe:
    """A pipeline of ``rgbax3`` that makes the clip of two boxes, whatever it is asked."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def set_progress_bar_config(self, **options: Any) -> None: ...

    def default_size(self, *sizes: int | None) -> tuple[int, int, int]:
        return 32, 40, 4

    def __call__(self, **options: Any) -> Pipe:
        self.asked = options
        return self

    def sample(self, index: int) -> dict[str, U8]:
        clip, objects = several(2)
        layers = {"background": clip.background, "blended": clip.blended}
        for item, place in zip(objects, ("", ".2"), strict=True):
            rgba = np.concatenate([item.colour, item.amodal[..., None]], -1)  # type: ignore[list-item]
            layers |= {f"foreground{place}": rgba, f"alpha{place}": item.amodal}
        return layers


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Pipe]:
    folder, pipe = tmp_path / "model", Pipe()
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer/config.json").write_text(json.dumps({"layers": "rgbax3"}))
    monkeypatch.setattr(module, "load_pipeline", lambda *_, **options: pipe)
    return folder, pipe


def test_each_foreground_is_given_asked_for_and_written(
    model: tuple[Path, Pipe], tmp_path: Path
) -> None:
    (tmp_path / "dog.png").write_bytes(encode_png(np.full((32, 40, 4), 90, np.uint8)))
    request = SampleRequest(
        model[0],
        tmp_path / "out",
        given={"foreground.2": tmp_path / "dog.png"},
        prompt={"foreground.2": "a dog", "foreground": "a cat"},
        foregrounds=2,
        steps=2,
        guidance=1.0,
    )
    (folder,) = run_sample(request, quiet=True)
    asked = model[1].asked
    assert asked["given"]["foreground.2"].shape == (4, 32, 40, 4) and asked["foregrounds"] == 2
    assert asked["prompt"] == {"foreground.2": "a dog", "foreground": "a cat"}
    clip, objects = several(2)
    assert np.array_equal(decode_alpha((folder / "alpha.mkv").read_bytes()), clip.alpha)
    front = decode_alpha((folder / "objects/alpha.2.mkv").read_bytes())
    assert np.array_equal(front, objects[1].amodal)
    assert json.loads((folder / "sample.json").read_text())["given"] == {"foreground.2": "dog.png"}
    # A column each: blended, two foregrounds with their mattes, background.
    assert decode_png((folder / "contact.png").read_bytes()).shape[1] == 6 * (3 * 150 + 8) + 8
    source = open_source(tmp_path / "out")
    stack = source.stack(0)
    assert stack is not None and stack.foregrounds == ("foreground", "foreground.2")
    assert np.array_equal(stack.layer("alpha.2"), objects[1].amodal)
    assert np.abs(stack.layer("foreground").astype(int) - objects[0].colour).max() <= 8
    assert np.array_equal(source.clip(0).alpha, clip.alpha)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"given": {"foreground.4": Path("x.png")}}, "the layers are foreground, alpha, foreg"),
        ({"prompt": {"alpha.2": "x"}}, "the layers with prompts are foreground, foreground.2"),
        ({"prompt": {"foreground.3": "x"}, "foregrounds": 2}, "'foreground.3' has no prompt"),
        ({"foregrounds": 4}, "rgbax3 has 1 to 3 foregrounds: 4"),
    ],
)
def test_layers_that_the_model_has_not_are_refused(
    model: tuple[Path, Pipe], tmp_path: Path, said: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        run_sample(SampleRequest(model[0], tmp_path / "out", **said), quiet=True)
    assert not (tmp_path / "out").exists()
