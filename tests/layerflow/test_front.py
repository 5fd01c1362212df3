"""The front door: the functions are the commands, and its page runs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import layerflow
from layerflow import front
from layerflow.cli import data, model, publish, train
from layerflow.cli.main import build_app
from tests.support import ROOT
from tests.support.corpora import make_rows, write_corpus
from tests.support.pasted import backdrops, stills

PAGE = ROOT / "docs" / "python-api.md"
COMMANDS = {
    "mine": data.mine,
    "paste": data.paste,
    "pack": data.pack,
    "init": model.init,
    "encode": train.encode,
    "train": train.train,
    "sample": model.sample,
    "publish": publish.publish,
    "evaluate": train.evaluate,
}
ONLY_SAID = {"plan", "explain"}  # prints, or draws, and stops


@pytest.mark.parametrize("name", COMMANDS)
def test_a_function_has_the_options_and_defaults_of_its_command(name: str) -> None:
    command = inspect.signature(COMMANDS[name]).parameters
    function = inspect.signature(getattr(layerflow, name)).parameters
    assert set(command) - ONLY_SAID == set(function)
    for key, parameter in function.items():
        if (name, key) == ("encode", "corpora"):  # --paste stands for them
            continue
        assert command[key].default == (parameter.default if key != "quiet" else False), key


def test_a_command_says_of_an_option_what_the_function_says_of_its_parameter() -> None:
    help_page = CliRunner().invoke(build_app(), ["publish", "--help"], terminal_width=100).output
    for option, text in (("--private --public", "who may see it"), ("--split", "one name, or")):
        row = next(line for line in help_page.splitlines() if option in " ".join(line.split()))
        assert text in row


def test_every_name_is_there_and_only_those() -> None:
    assert dir(layerflow) == sorted([*layerflow.__all__, "__version__"])
    assert all(getattr(layerflow, name) is not None for name in layerflow.__all__)
    assert layerflow.mine is front.mine
    with pytest.raises(AttributeError, match="no attribute 'film'"):
        _ = layerflow.film


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ("torch", "ray", "pyarrow", "numpy", "pydantic", "typer", "diffusers")
    code = f"import sys, layerflow; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "mined", make_rows(2))
    stills(tmp_path / "cutouts")
    backdrops(tmp_path / "plates")
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, names)
    assert names["colour"].shape[-1] == 3  # type: ignore[attr-defined]
    assert names["item"]["alpha"].shape[1] == 1  # type: ignore[index]


def test_former_places_lead_to_the_code() -> None:
    """``model_index.json`` of model folders names some, scripts of people the others."""
    from layerflow.corpus import Corpus
    from layerflow.mattes import fetch_matte
    from layerflow.media import mattes, video
    from layerflow.video import fetch

    assert Corpus is layerflow.Corpus
    assert fetch is video.fetch and fetch_matte is mattes.fetch_matte

    from layerflow.autoencoder import BlockDCTAutoencoder
    from layerflow.pipeline import LayerFlowPipeline
    from layerflow.transformer import LayerFlowTransformer3DModel

    assert LayerFlowPipeline is layerflow.LayerFlowPipeline
    assert LayerFlowTransformer3DModel is layerflow.LayerFlowTransformer3DModel
    assert BlockDCTAutoencoder.__name__ == "BlockDCTAutoencoder"
