"""Code shipped with an export: it opens where the package is not, and computes the same."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import subprocess
import symtable
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers.pipelines.pipeline_loading_utils import (
    _get_custom_components_and_folders,
    filter_model_files,
    variant_compatible_siblings,
)

from layerflow import compat
from layerflow.corpus.fingerprint import model_fingerprint
from layerflow.model import adapters
from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.presets import init_directory
from layerflow.model.ship import bundle, ship_code
from tests.support.model_kit import SMALL, randomise

SAMPLE = """
import torch
torch.set_num_threads(1)
out = pipe(
    prompt={"foreground": "a ball", "blended": "a ball on grass"},
    given={"background": torch.full((2, 16, 24, 3), 0.25)},
    num_inference_steps=2, guidance_scale=2.0, output_type="np",
    generator=torch.Generator().manual_seed(3),
)
"""
STRANGER = """
import runpy, sys
runpy.run_path(sys.argv[3])["install"]()  # for a torchvision that does not fit torch
sys.modules["layerflow"] = None
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
%s
import numpy as np
np.savez(sys.argv[2], **{name: getattr(out, name) for name in out})
assert not [name for name in sys.modules if name.startswith("layerflow.")]
print(sorted(pipe.transformer.peft_config), type(pipe).__module__)
"""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = init_directory(tmp_path_factory.mktemp("ship") / "m", "tiny", **SMALL)
    pipe = LayerFlowPipeline.from_pretrained(folder)
    randomise(pipe.transformer)
    for name in ("motion", "content"):
        adapters.add_adapter(pipe.transformer, name, rank=2, alpha=2)
    randomise(pipe.transformer)
    pipe.transformer.save_pretrained(folder / "transformer")
    before = model_fingerprint(folder)
    ship_code(folder)
    assert model_fingerprint(folder) == before, "latents of the model still fit it"
    return folder


def test_it_opens_in_a_process_without_the_package(shipped: Path, tmp_path: Path) -> None:
    pipe = LayerFlowPipeline.from_pretrained(shipped)  # the package's own code, and no trust asked
    assert type(pipe) is LayerFlowPipeline
    assert type(pipe.transformer).__module__ == "layerflow.model.cogvideox.transformer"
    assert type(pipe.vae).__module__ == "layerflow.model.autoencoder"
    here: dict[str, object] = {"pipe": pipe}
    exec(SAMPLE, here)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER % SAMPLE, shipped, tmp_path / "out.npz", compat.__file__],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("['content', 'motion'] diffusers_modules.")
    assert "might require the following" not in done.stderr, "all its imports are libraries"
    assert "Expected types" not in done.stderr
    made = np.load(tmp_path / "out.npz")
    for name in ("foreground", "alpha", "background", "blended"):
        ours = np.asarray(getattr(here["out"], name))
        assert np.abs(made[name] - ours).max() < 1e-5, name
        assert np.isfinite(ours).all() and (ours.std() > 0 or name == "background"), name


def test_each_file_stands_alone() -> None:
    for module, name in (
        ("layerflow.model.cogvideox.pipeline", "LayerFlowPipeline"),
        ("layerflow.model.transformer", "LayerFlowTransformer3DModel"),
        ("layerflow.model.autoencoder", "BlockDCTAutoencoder"),
    ):
        text = bundle(module, name)
        assert "import layerflow" not in text and "from layerflow" not in text
        assert f"class {name}(" in text and len(text.splitlines()) < 1600
        assert unknown_names(text) == set()


def unknown_names(text: str) -> set[str]:
    """Global names that code reads and nobody defines."""
    top = symtable.symtable(text, "shipped.py", "exec")
    tables, read = [top], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        read |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    known = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    known |= {s.get_name() for s in top.get_children()}  # functions and classes
    return read - known - set(dir(builtins)) - {"__name__", "__file__"}


def test_the_hub_s_download_would_bring_every_file(shipped: Path, tmp_path: Path) -> None:
    """diffusers chooses files by name; what it leaves out would be missing without a word."""
    names = {str(p.relative_to(shipped)) for p in shipped.rglob("*") if p.is_file()}
    index = json.loads((shipped / "model_index.json").read_text())
    assert index["_class_name"] == ["layerflow_pipeline", "LayerFlowPipeline"]
    custom, _ = _get_custom_components_and_folders("me/model", index, sorted(names))
    assert custom == {"transformer": "layerflow_transformer", "vae": "layerflow_autoencoder"}
    weights, _ = variant_compatible_siblings(filter_model_files(names), variant=None)
    brought = tmp_path / "transformer"
    for file in [*weights, "transformer/config.json"]:
        place = tmp_path / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shipped / file, place)
    model = LayerFlowTransformer3DModel.from_pretrained(brought)
    assert sorted(adapters.adapter_names(model)) == ["content", "motion"]
    shutil.rmtree(brought / "adapters" / "content")
    with pytest.raises(ValueError, match=r"has lost its adapters \['content'\]"):
        LayerFlowTransformer3DModel.from_pretrained(brought)
    own = LayerFlowPipeline._dict_from_json_file(shipped / "model_index.json")
    assert own["_class_name"] == "LayerFlowPipeline"
