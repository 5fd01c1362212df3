"""What jobs make around networks in actors is what they make in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerflow.corpus.latents import Latents
from layerflow.corpus.table import Corpus
from layerflow.model.presets import init_directory
from manifests.steps import Step
from pipelines.encode import job as encode
from pipelines.engine.desk import Desks
from pipelines.mine.job import run_mine
from tests.support.mined import green_screen, options
from tests.support.tiny_networks import make_onnx
from tests.support.tiny_vace import write_vace
from tests.support.tiny_vitmatte import write_vitmatte

pytestmark = pytest.mark.slow


def test_a_corpus_and_its_latents_are_the_same_with_networks_in_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    networks = {
        "matting": "onnx",
        "weights": str(make_onnx(tmp_path / "made.onnx")),
        "refine": "vitmatte",
        "refine_weights": str(write_vitmatte(tmp_path / "vitmatte")),
        "inpaint": "wan-vace",
        "inpaint_weights": str(write_vace(tmp_path / "vace")),
    }
    (tmp_path / "videos").mkdir()
    for seed in (1, 2):
        green_screen(tmp_path / "videos" / f"{seed}.mp4", seed)
    model = init_directory(tmp_path / "model", "tiny")
    opened: list[set[str]] = []
    real = Desks.open

    def watched(self: Desks) -> Any:
        found = real(self)
        opened.append(set(found))
        return found

    monkeypatch.setattr(Desks, "open", watched)
    made: list[tuple[Any, Any]] = []
    step = {"gpus": 0, "concurrency": (1, 1)}
    mining = {"matte", "refine", "inpaint"}
    for workers, steps in ((0, {}), (4, dict.fromkeys(mining, step))):
        out = tmp_path / f"mined-{workers}"
        asked = options(tmp_path / "videos", out, **networks, steps=steps)
        run_mine(asked, workers=workers, quiet=True)
        if workers:
            monkeypatch.setattr(encode, "ON_GPU", {"encode": Step(gpus=0, concurrency=(1, 1))})
        latents = tmp_path / f"latents-{workers}"
        how: dict[str, Any] = {"size": (32, 40), "workers": workers, "quiet": True}
        encode.run_encode([out], model=model, out=latents, **how)
        store = Latents.open(latents)
        rows = [store.raw(index) for index in range(len(store))]
        made.append((Corpus.open(out).shards, (rows, list(store.prompt_rows()))))
    assert made[0] == made[1] and made[0][1][0]
    assert mining in opened and {"encode"} in opened
