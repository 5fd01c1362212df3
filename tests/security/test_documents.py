"""JSON that comes with corpora, latents, models and runs: nonsense is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow import documents
from layerflow.clip import LAYERS, PROMPTED
from layerflow.corpus.derive import recorded_jobs
from layerflow.corpus.latents import Latents, LatentsWriter, clip_row
from layerflow.documents import read_json
from layerflow.model.info import describe, sampling_settings
from layerflow.model.presets import init_directory
from pipelines.encode.models import text_shape
from tests.support.trainer_kit import make_manifest
from trainer import checkpoint
from trainer.claim import claim

NONSENSE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is no JSON"),
    "cut off": (b'{"a": 1', "it is no JSON"),
    "deep lists": (b"[" * 200_000, "nested too deep"),
    "deep mappings": (b'{"a":' * 200_000, "nested too deep"),
    "a huge number": (b'{"a": ' + b"9" * 10_000 + b"}", "it is no JSON"),
    "binary": (bytes(range(256)), "it is no JSON"),
    "a list": (b"[1, 2]", "it holds no mapping"),
    "a number": (b"1", "it holds no mapping"),
    "null": (b"null", "it holds no mapping"),
    "needs are missing": (b"{}", "its 'steps' is missing or no int"),
    "needs are of another type": (b'{"steps": "7"}', "its 'steps' is missing or no int"),
    "needs are a truth value": (b'{"steps": true}', "its 'steps' is missing or no int"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_names_the_file_and_what_is_wrong(name: str, tmp_path: Path) -> None:
    path = tmp_path / "said.json"
    content, words = NONSENSE[name]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as refused:
        read_json(path, {"steps": int})
    assert str(path) in str(refused.value) and len(str(refused.value)) < 600


def test_a_file_beyond_the_limit_or_absent_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "said.json"
    with pytest.raises(ValueError, match=r"said\.json cannot be read: No such file"):
        read_json(path)
    path.write_text('{"steps": 7}')
    assert read_json(path, {"steps": int}) == {"steps": 7}
    monkeypatch.setattr(documents, "MAX_BYTES", 8)
    with pytest.raises(ValueError, match="larger than 8 bytes"):
        read_json(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_directory(tmp_path_factory.mktemp("tiny") / "model", "tiny")


@pytest.mark.parametrize("name", ["cut off", "deep lists", "a list"])
def test_models_that_hold_nonsense_are_refused_by_name(name: str, model: Path) -> None:
    config, settings = model / "transformer" / "config.json", model / "layerflow.json"
    before = config.read_bytes(), settings.read_bytes()
    try:
        config.write_bytes(NONSENSE[name][0])
        settings.write_bytes(NONSENSE[name][0])
        for read in (describe, lambda folder: text_shape(str(folder))):
            with pytest.raises(ValueError, match=r"config\.json cannot be read"):
                read(model)
        with pytest.raises(ValueError, match=r"layerflow\.json cannot be read"):
            sampling_settings(model)
    finally:
        config.write_bytes(before[0])
        settings.write_bytes(before[1])


@pytest.mark.parametrize("name", ["cut off", "deep lists", "a list"])
def test_runs_that_hold_nonsense_are_refused_by_name(name: str, tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    out = tmp_path / "run"
    claim(out, manifest)
    assert claim(out, manifest)
    (out / "run.json").write_bytes(NONSENSE[name][0])
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        claim(out, manifest)
    stage = out / "stages" / "base" / "stage.json"
    stage.parent.mkdir(parents=True)
    stage.write_bytes(NONSENSE[name][0])
    with pytest.raises(ValueError, match=r"stage\.json cannot be read"):
        checkpoint.stage_steps(out, "base")


@pytest.mark.parametrize(
    "index",
    ['{"clips": 1}', '{"clips": [1], "prompts": []}', '{"clips": ["a/../x"], "prompts": []}', "[]"],
)
def test_latents_whose_index_is_nonsense_or_leads_out_are_refused(
    index: str, tmp_path: Path
) -> None:
    (tmp_path / "fingerprint.json").write_text('{"format_version": 1}')
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(ValueError, match=r"index\.json (cannot be read|names a shard)"):
        Latents.open(tmp_path)


MISFITS: dict[str, tuple[str, list[Any]]] = {
    "a height without end": ("latent_height", [2**31 - 1]),
    "a height below nothing": ("latent_height", [-4]),
    "no height": ("latent_height", [None]),
    "no values": ("foreground", [None]),
    "fewer values than the shape says": ("alpha", [b"x"]),
    "numbers of another kind": ("dtype", ["complex128"]),
}


@pytest.mark.parametrize("what", MISFITS)
def test_latents_that_do_not_fit_their_shape_are_refused(what: str, tmp_path: Path) -> None:
    name, values = MISFITS[what]
    about = {"num_frames": 5, "height": 32, "width": 40, "fps": 8.0}
    texts = ("id", "source", "content", "kind", "alpha_kind", "origin_group")
    texts += tuple(f"{layer}_prompt" for layer in PROMPTED)
    moments = {layer: np.zeros((8, 2, 4, 5), np.float32) for layer in LAYERS}
    row = clip_row(moments, **about, **dict.fromkeys(texts, "a"))
    with LatentsWriter(tmp_path / "latents", {"format_version": 1}) as writer:
        writer.clips([{**row, name: values[0]}])
        writer.prompts([])
    with pytest.raises(ValueError, match="'a' do not fit their shape"):
        Latents.open(tmp_path / "latents")


def test_a_record_of_jobs_that_is_nonsense_counts_as_none(tmp_path: Path) -> None:
    from layerflow.corpus.derive import RECORD

    for content, _ in NONSENSE.values():
        (tmp_path / RECORD).write_bytes(content)
        assert isinstance(recorded_jobs(tmp_path), dict)
