"""Encoding for sets of layers: several foregrounds, fewer than the set has, none with alpha."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from layerflow.clip import from_level
from layerflow.corpus.latents import Latents
from layerflow.corpus.row_stack import row_prompts, stack_of_row
from layerflow.corpus.table import decode_row
from layerflow.layer_set import layer_set
from layerflow.media.cells import MediaError, encode_color
from layerflow.model.autoencoder import BlockDCTAutoencoder, encode_clips
from layerflow.model.presets import init_directory
from layerflow.model.text import prefixed
from pipelines.encode.clip_latents import Options, pictures_of
from pipelines.encode.job import EncodeSummary, run_encode
from tests.support.several import several, several_corpus, several_row


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_directory(tmp_path_factory.mktemp("tiny") / "model", "tiny")


def encode(corpus: Path, model: Path, out: Path, **options: Any) -> EncodeSummary:
    return run_encode([corpus], model=model, out=out, workers=0, quiet=True, **options)


def test_rows_have_the_foregrounds_that_they_have(model: Path, tmp_path: Path) -> None:
    corpus = several_corpus(tmp_path / "clips", 1, 2, 3)
    encode(corpus.path, model, tmp_path / "l", layers="rgbax2")
    store = Latents.open(tmp_path / "l")
    assert store.layers.name == "rgbax2" == store.fingerprint["layers"]
    assert store.column("foregrounds") == [1, 2, 2]
    items = [store.item(i) for i in range(3)]
    assert items[0]["layers"] == ("foreground", "alpha", "background", "blended")
    assert [len(item["moments"]) for item in items] == [4, 6, 6]
    assert [len(item["prompt_embeds"]) for item in items] == [3, 4, 4]
    vae = BlockDCTAutoencoder.from_pretrained(model / "vae")
    stack = stack_of_row(corpus.row(1), corpus.clip(1), layer_set("rgbax2"))
    np.testing.assert_allclose(items[1]["moments"], encode_clips(vae, [stack])[0], atol=1e-5)
    front = [i["layers"].index("foreground.2") for i in items[1:]]
    assert not np.allclose(items[1]["moments"][front[0]], items[1]["moments"][0], atol=0.1)
    texts = [{k: store.prompt_text(key) for k, key in i["prompts"].items()} for i in items]
    assert texts[0]["foreground"] == "0, boxes" and texts[1]["foreground"] == "0, box 0"
    assert texts[1]["foreground.2"] == "3, box 1" and texts[2]["foreground.2"] == "3, box 2"
    assert texts[2]["foreground"] == "0, box 1, box 0"  # the hindmost two are one
    assert texts[1]["blended"] == "2, boxes on grey"
    assert encode(corpus.path, model, tmp_path / "l", layers="rgbax2").encoded == 0
    with pytest.raises(ValueError, match="layers: 'rgbax2' there, 'rgba' now"):
        encode(corpus.path, model, tmp_path / "l")


def test_one_foreground_is_stored_as_it_always_was(model: Path, tmp_path: Path) -> None:
    corpus = several_corpus(tmp_path / "clips", 2)
    encode(corpus.path, model, tmp_path / "l")
    store = Latents.open(tmp_path / "l")
    assert "layers" not in store.fingerprint and "foregrounds" not in store.raw(0)
    assert store.item(0)["layers"] == ("foreground", "alpha", "background", "blended")
    encode(corpus.path, model, tmp_path / "rgb", layers="rgb")
    plain, four = Latents.open(tmp_path / "rgb").item(0), store.item(0)
    assert plain["layers"] == ("foreground", "background", "blended")
    assert np.array_equal(plain["moments"], four["moments"][[0, 2, 3]])
    assert np.array_equal(plain["prompt_embeds"], four["prompt_embeds"])


def test_the_model_says_which_layers_it_has(tmp_path: Path) -> None:
    folder = init_directory(tmp_path / "model", "tiny")
    config = folder / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers": "rgbax3"}))
    corpus = several_corpus(tmp_path / "clips", 3)
    encode(corpus.path, folder, tmp_path / "l")
    assert len(Latents.open(tmp_path / "l").item(0)["moments"]) == 8


def test_a_colour_that_changes_is_encoded_again_and_a_wrong_one_refused() -> None:
    row, options = several_row(2), Options("m", layers="rgbax2")
    stack = pictures_of(row, options)[0]
    made, objects = several(2)
    assert objects[0].colour is not None
    assert np.abs(stack.layer("foreground").astype(int) - objects[0].colour).max() <= 4
    assert np.array_equal(stack.layer("alpha.2"), objects[1].amodal)
    assert np.abs(stack.recomposed().astype(int) - made.blended).mean() < 2
    wrong = encode_color(255 - objects[1].colour, 8.0)
    objects_of = [row["objects"][0], row["objects"][1] | {"colour": wrong}]
    with pytest.raises(MediaError, match="objects over the background miss blended"):
        pictures_of(row | {"objects": objects_of}, options)
    for item in objects_of:
        item["colour"] = None  # as older corpora: one foreground
    old = row | {"objects": objects_of}
    assert pictures_of(old, options)[0].foregrounds == ("foreground",)
    assert row_prompts(old, layer_set("rgbax2"))["foreground"] == "boxes"


def test_a_shadow_of_the_background_is_the_effects_of_the_foregrounds() -> None:
    row = several_row(2)
    clip = decode_row(row)
    layers = layer_set("rgbax2+effects")
    still = stack_of_row(row, clip, layers)
    assert (still.layer("alpha.effects") == 0).all()
    lit = from_level(clip.background / 0.75)  # a quarter of the light is taken everywhere
    shaded = row | {"shadow": "background", "plate": encode_color(lit, 8.0, crf=1)}
    stack = stack_of_row(shaded, clip, layers)
    assert np.abs(stack.layer("alpha.effects").astype(int) - 64).max() <= 3
    assert (stack.layer("effects") == 0).all()
    assert np.abs(stack.layer("background").astype(int) - 160).max() <= 2
    assert np.abs(stack.recomposed().astype(int) - clip.blended).mean() < 2
    assert stack.names[4:6] == ("effects", "alpha.effects")
    with pytest.raises(MediaError, match="does not say whether a shadow"):
        stack_of_row(row | {"shadow": None}, clip, layers)


def test_prompts_are_numbered_by_layer_in_every_set() -> None:
    numbers = {"foreground": 0, "background": 1, "blended": 2, "foreground.2": 3, "foreground.8": 9}
    assert {name: int(prefixed(name, "x")[0]) for name in numbers} == numbers
    for layer in ("alpha.2", "effects", "foreground.9", "sky"):
        with pytest.raises(ValueError, match="no prompt"):
            prefixed(layer, "x")


def test_a_store_whose_rows_and_layers_do_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    corpus = several_corpus(tmp_path / "clips", 2)
    encode(corpus.path, model, tmp_path / "l", layers="rgbax2")
    shard = tmp_path / "l/clips/data-00000.arrow"
    with pa.ipc.open_stream(shard.read_bytes()) as stream:
        table = stream.read_all()
    at = table.schema.get_field_index("foregrounds")
    for count in (1, 3, None):
        said = table.set_column(at, table.schema.field(at), pa.array([count], pa.int32()))
        with pa.OSFile(str(shard), "wb") as file, pa.ipc.new_stream(file, said.schema) as writer:
            writer.write_table(said)
        with pytest.raises(ValueError, match="do not fit their shape"):
            Latents.open(tmp_path / "l")
