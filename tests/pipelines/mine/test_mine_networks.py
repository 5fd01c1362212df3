"""A mine job whose matte is refined and whose background is filled by networks given by path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.corpus.derive import RECORD
from layerflow.corpus.table import Corpus
from layerflow.weights import content
from manifests.mine import MineOptions
from manifests.steps import Step
from pipelines.engine.jobs import make_recipe
from pipelines.engine.replay import remember
from pipelines.matting.refine import BAND, INSIDE, OUTSIDE, trimap_of
from pipelines.mine.explain import write_explanation
from pipelines.mine.job import run_mine, served_steps
from pipelines.mine.window import with_networks
from tests.support.mined import green_screen, options
from tests.support.tiny_vace import write_vace
from tests.support.tiny_vitmatte import write_vitmatte


def recipe(asked: MineOptions) -> str:
    return make_recipe("mined", with_networks(asked).model_dump(mode="json"), 1).hash


def record(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a corpus says of its job, and what is kept beside it for a replay."""
    (job,) = json.loads((out / RECORD).read_text()).values()
    assert str(out.parent) not in (out / "corpus.json").read_text()
    return json.loads((out / "corpus.json").read_text())["options"], job["options"]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    green_screen(tmp_path / "in/a.mp4", 0, frames=8)
    return tmp_path / "in"


def test_a_refiner_has_the_last_word_in_the_band(tmp_path: Path) -> None:
    """It answers one half wherever it is asked; the band is worked out from the true matte."""
    (tmp_path / "in").mkdir()
    true = green_screen(tmp_path / "in/a.mp4", 0, frames=8)
    half = write_vitmatte(tmp_path / "half", sure=0.0)
    asked = options(tmp_path / "in", tmp_path / "out", refine="vitmatte", refine_weights=str(half))
    assert run_mine(asked, workers=0, quiet=True).kept == 1
    alpha, trimap = Corpus.open(tmp_path / "out").clip(0).alpha, trimap_of(true)
    assert np.median(alpha[trimap == BAND]) == pytest.approx(128, abs=1)
    assert (alpha[trimap == INSIDE] == 255).mean() > 0.98
    assert (alpha[trimap == OUTSIDE] == 0).mean() > 0.98
    said, kept = record(tmp_path / "out")
    assert said["refine"] == f"vitmatte@{content(half)}" and "refine_weights" not in said
    assert kept["refine_weights"] == str(half)


@pytest.mark.slow
def test_a_network_for_video_fills_what_no_frame_showed(films: Path, tmp_path: Path) -> None:
    vace = write_vace(tmp_path / "vace")
    networks = {"inpaint": "wan-vace", "inpaint_weights": str(vace)}
    for name, more in (("plain", {}), ("filled", networks)):
        run_mine(options(films, tmp_path / name, **more), workers=0, quiet=True)
    plain, filled = (Corpus.open(tmp_path / name).clip(0) for name in ("plain", "filled"))
    assert np.array_equal(plain.alpha, filled.alpha)
    deep = plain.alpha.min(axis=0) == 255  # never free
    apart = np.abs(plain.background.astype(int) - filled.background).max(-1)
    assert deep.sum() > 200 and np.median(apart[:, deep]) > 10
    assert np.median(apart[plain.alpha == 0]) <= 1  # but for the codec
    said, kept = record(tmp_path / "filled")
    assert said["inpaint"] == f"wan-vace@{content(vace)}" and said["inpaint_weights"] == "vace"
    assert kept["inpaint_weights"] == str(vace)


def test_a_recipe_is_of_what_the_weights_hold_not_of_where_they_lie(
    films: Path, tmp_path: Path
) -> None:
    first = write_vitmatte(tmp_path / "first")
    second = Path(shutil.copytree(first, tmp_path / "second"))
    (second / "README.md").write_text("what it is")
    one, two = (
        options(films, tmp_path / "out", refine="vitmatte", refine_weights=str(folder))
        for folder in (first, second)
    )
    assert recipe(one) == recipe(two)
    write_vitmatte(second, sure=0.5)
    assert recipe(one) != recipe(two)
    plain = options(films, tmp_path / "out")
    assert not {"refine", "refine_weights"} & set(plain.model_dump())
    again = with_networks(one)  # as it is replayed
    assert with_networks(again) == again
    moved = again.model_copy(update={"refine_weights": str(second)})
    with pytest.raises(ValueError, match="are others"):
        with_networks(moved)


def test_a_replay_knows_where_weights_lie_and_a_corpus_what_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/lama.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    asked = options(tmp_path, tmp_path / "out", inpaint="lama", inpaint_weights="nets/lama.pt")
    made = make_recipe("mined", asked.model_dump(mode="json"), 1)
    assert made.options["inpaint_weights"] == "lama.pt"
    remember(tmp_path, "mined", made.hash, made.given)
    job = json.loads((tmp_path / RECORD).read_text())[made.hash]
    assert job["options"]["inpaint_weights"] == str(tmp_path / "nets/lama.pt")


def test_wrong_requests_fail_before_any_work(films: Path, tmp_path: Path) -> None:
    for said, match in (
        ({"refine": "vitmatte"}, "refiner 'vitmatte' needs weights"),
        ({"refine": "vitmatte", "refine_weights": str(tmp_path / "none")}, "not found"),
        ({"refine": "sharp"}, "unknown refiner 'sharp'"),
        ({"inpaint": "lama"}, "inpainter 'lama' needs weights"),
        ({"inpaint_weights": str(films / "a.mp4")}, "inpainter 'opencv' has no weights"),
    ):
        with pytest.raises(ValueError, match=match):
            run_mine(options(films, tmp_path / "out", **said), workers=0, quiet=True)
        with pytest.raises(ValueError, match=match):
            write_explanation(options(films, tmp_path / "out", **said))
    with pytest.raises(ValueError, match="say which with refine"):
        options(films, tmp_path / "out", refine_weights="folder")
    assert not (tmp_path / "out").exists()


def test_a_refiner_is_served_as_other_networks_are(films: Path, tmp_path: Path) -> None:
    asked = options(films, tmp_path / "out", device="cuda", refine="vitmatte@0", inpaint="wan-vace")
    assert served_steps(asked) == dict.fromkeys(("refine", "inpaint"), Step())
    on_cpu = {"device": "cpu", "steps": {"refine": {"gpus": 0, "concurrency": [1, 2]}}}
    asked = options(films, tmp_path / "out", refine="vitmatte", **on_cpu)
    assert served_steps(asked) == {"refine": Step(gpus=0, concurrency=(1, 2))}
