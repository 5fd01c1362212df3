"""The page of latents: false colours without a model, the clips themselves with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.clip import LAYERS, LayeredClip
from layerflow.corpus.table import Corpus
from layerflow.model.presets import init_directory
from pipelines.encode.job import run_encode
from pipelines.view.latents import false_colours
from pipelines.view.page import write_report
from pipelines.view.source import CorpusSource, open_source
from tests.support.browser import browser
from tests.support.corpora import make_rows, write_corpus

SHOWN = "return [...document.querySelectorAll('.card .stage span')].map((span) => span.textContent)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``corpus``, ``model`` and the ``latents`` of the one by the other."""
    made = tmp_path_factory.mktemp("latents")
    rows = make_rows(4)
    rows[3]["alpha"] = b"broken"
    write_corpus(made / "corpus", rows)
    init_directory(made / "model", "tiny")
    run_encode([made / "corpus"], model=made / "model", out=made / "latents", workers=0, quiet=True)
    return made


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text().split('id="data">')[1].split("</script>")[0]
    found: dict[str, Any] = json.loads(text)
    return found


def test_false_colours_are_the_main_directions() -> None:
    rng = np.random.default_rng(0)
    mean = rng.normal(0, 0.1, (4, 8, 2, 6, 9)).astype(np.float32)
    mean[:, 5, :, :, :4] += 5  # one channel tells left from right, in every layer
    found = false_colours(mean)
    assert found["blended"].shape == (2, 96, 144, 3) and found["alpha"].shape == (2, 96, 144)
    red = found["background"][..., 0].astype(int)
    assert red[:, :, :64].min() > red[:, :, 64:].max() + 60
    assert np.array_equal(red[0, :16, :16], np.full((16, 16), red[0, 0, 0]))
    assert false_colours(np.zeros((4, 1, 1, 2, 2), np.float32))["blended"].max() <= 128


def test_rows_say_what_is_known(folder: Path) -> None:
    source = open_source(folder / "latents")
    rows = list(source.rows())
    assert [row["kind"] for row in rows] == ["pasted", "mined", "image"] and len(source) == 3
    assert rows[0]["prompts"] == {"foreground": "disc 0", "background": "waves",
                                  "blended": "disc 0, waves"}  # fmt: skip
    assert rows[0]["flat"] and {f"std_{layer}" for layer in LAYERS} <= set(rows[0]["scores"])
    assert [row["uri"] for row in source.rejected()] == ["0000000000000003"]


def mean_error(left: LayeredClip, right: LayeredClip, layer: str) -> float:
    return float(np.abs(left.layer(layer).astype(int) - right.layer(layer)).mean())


def test_a_model_decodes_them(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder / "latents", folder / "model")
    corpus = CorpusSource(folder / "corpus")
    for index in (0, 2):
        clip, truth = source.clip(index), corpus.clip(index)
        assert clip.foreground.shape == truth.foreground.shape
        assert max(mean_error(clip, truth, layer) for layer in ("blended", "alpha")) < 12
        inside = truth.alpha > 200
        assert np.abs(clip.foreground.astype(int) - truth.foreground)[inside].mean() < 16
    other = init_directory(tmp_path / "other", "tiny")
    config = other / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 3.0}))
    with pytest.raises(ValueError, match="another autoencoder"):
        open_source(folder / "latents", other)
    with pytest.raises(ValueError, match="no latents for a model"):
        open_source(folder / "corpus", folder / "model")


def test_the_page_of_latents_shows_their_layers(folder: Path, tmp_path: Path) -> None:
    assert write_report(folder / "latents", tmp_path / "l.html", workers=0) == [tmp_path / "l.html"]
    data = data_of(tmp_path / "l.html")
    assert data["note"] == "in false colours" and data["rejected_total"] == 1
    assert [clip["preview"]["frames"] for clip in data["clips"]] == [5, 5, 1]
    decoded = write_report(folder / "latents", tmp_path / "m.html", workers=0,
                           model=folder / "model")  # fmt: skip
    assert len(decoded) == 2  # with a contact sheet
    assert Corpus.open(folder / "corpus").ids()[:3] == [clip["id"] for clip in data["clips"]]
    with browser(tmp_path) as page:
        page.open((tmp_path / "l.html").as_uri())
        page.wait("return players.size === 3 && [...players].every((player) => player.shot)")
        page.run("change({ layers: 'difference' }); open(listed[0])")
        page.wait("return opened.player.shot")
        assert page.run(SHOWN)[:4] == ["blended", "foreground", "alpha", "background"]
        assert page.run("return document.querySelectorAll('#panels canvas').length") == 4
        assert page.log("browser") == []
