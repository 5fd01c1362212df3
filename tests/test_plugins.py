"""Packages of others add backends, refiners, captioners, importers, inpainters and presets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.corpus.table import Corpus
from layerflow.plugins import BASES, missing_packages
from manifests.mine import Captions, MineOptions
from pipelines.captions.captioner import CAPTIONERS, make_captioner
from pipelines.engine.jobs import make_recipe
from pipelines.engine.staging import InfrastructureError
from pipelines.engine.workers import require_packages
from pipelines.inputs.importers import LAYOUTS
from pipelines.matting import MATTING, make_backend
from pipelines.vision.inpaint import INPAINTERS
from tests.support import ROOT, mined, packed
from tests.support.foreign import dist_info, install

ACME = "acme-layers==1.2"
KINDS = (MATTING, CAPTIONERS, LAYOUTS, INPAINTERS, BASES)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("foreign"))


def layerflow(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process that finds the packages of ``site``."""
    known = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "COLUMNS": "200"}
    command = [sys.executable, "-m", "layerflow.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=known)


def recorded(out: Path) -> dict[str, Any]:
    return json.loads((out / "corpus.json").read_text())["options"]


def test_a_foreign_backend_refiner_captioner_and_inpainter_mine(site: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    matte = mined.green_screen(tmp_path / "films/disc.mp4", 3)
    out = tmp_path / "mined"
    done = layerflow(
        site, "mine", tmp_path / "films", "--out", out, "--size", "96x128", "--frames", 8,
        "--fps", 10, "--gate", "off", "--matting", "acme-green", "--captioner", "acme-words",
        "--refine", "acme-green-edge", "--inpaint", "acme-pink", "--workers", 0, "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kinds = ("matting", "refine", "inpaint", "captioner")
    assert recorded(out)["packages"] == dict.fromkeys(kinds, ACME)
    corpus = Corpus.open(out)
    assert len(corpus) == 2
    row, clip = corpus.row(0), corpus.clip(0)
    assert row["foreground_prompt"] == "A striped disc rolls on."
    assert row["background_prompt"] == "A plain green wall."
    both, either = (clip.alpha > 127) & (matte[:8] > 127), (clip.alpha > 127) | (matte[:8] > 127)
    assert both.sum() / either.sum() > 0.9
    never_free = clip.alpha.min(axis=0) == 255
    pink = np.abs(clip.background[0][never_free].astype(int) - (250, 100, 180)).mean()
    assert never_free.sum() > 200 and pink < 12


def test_a_foreign_importer_packs(site: Path, tmp_path: Path) -> None:
    packed.write(tmp_path / "in/front-1.png", packed.disc())
    packed.write(tmp_path / "in/back-1.png", packed.slope())
    command = ("pack", tmp_path / "in", "--out", tmp_path / "cards", "--workers", 0, "--quiet")
    done = layerflow(site, *command, "--layout", "acme-cards")
    assert done.returncode == 0, done.stderr
    corpus = Corpus.open(tmp_path / "cards")
    assert [row["origin"]["uri"] for row in corpus.rows()] == ["front-1.png"]
    assert corpus.row(0)["background_kind"] == "real"
    assert recorded(tmp_path / "cards")["packages"] == {"layout": ACME}


@pytest.mark.slow
def test_a_foreign_preset_makes_a_model_folder(site: Path, tmp_path: Path) -> None:
    done = layerflow(site, "init", tmp_path / "model", "--preset", "acme-small")
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "model/layerflow.json").read_text())
    assert settings["package"] == ACME and settings["preset"] == "acme-small"
    config = json.loads((tmp_path / "model/transformer/config.json").read_text())
    assert config["num_layers"] == 1


def test_help_and_errors_list_what_is_installed(site: Path) -> None:
    shown = layerflow(site, "mine", "--help").stdout
    for name in (
        "acme-green",
        "chroma",
        "acme-green-edge",
        "vitmatte",
        "acme-words",
        "acme-pink",
        "lama",
    ):
        assert name in shown
    wrong = layerflow(site, "pack", site, "--out", "x", "--layout", "acme-card")
    assert wrong.returncode == 2
    assert "did you mean 'acme-cards'? choose one of auto, layerflow-images" in wrong.stderr


def test_only_what_is_chosen_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist_info(tmp_path, "acme-broken", {"layerflow.matting": {"acme-sky": "acme_broken:Sky"}})
    (tmp_path / "acme_broken.py").write_text("raise RuntimeError('no driver')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert make_backend("chroma").name == "chroma"
    assert MATTING.names()[-1] == "acme-sky" and "acme_broken" not in sys.modules
    with pytest.raises(ValueError, match=r"acme-broken==1\.0 cannot be imported.*no driver"):
        make_backend("acme-sky")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.group)
def test_a_package_cannot_take_a_built_in_name(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, other = list(kind.builtin)[:2]
    points = {kind.group: {taken: "acme:One", "acme": "acme:Two"}}
    dist_info(tmp_path, "acme-thief", points)
    dist_info(tmp_path, "acme-twin", {kind.group: {"acme": "acme:Two"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"acme-thief==1\.0 offers a .*built-in"):
        kind.load(taken)
    with pytest.raises(ValueError, match=r"acme-t\w+==1\.0 and acme-t\w+==1\.0 offer"):
        kind.load("acme")
    assert kind.package(other) is None


def test_what_a_package_gives_must_be_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist_info(tmp_path, "acme-odd", {"layerflow.matting": {"odd": "acme_odd:Odd"}})
    (tmp_path / "acme_odd.py").write_text("class Odd:\n    name = version = 'odd'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"'odd' of the package acme-odd==1\.0 has no licence"):
        make_backend("odd")
    with pytest.raises(ValueError, match="has no weights"):
        make_backend("odd", weights="x.onnx")


def test_a_machine_without_the_package_stops_the_job() -> None:
    require_packages({})
    with pytest.raises(InfrastructureError, match=r"acme-far==2\.0, which is not installed on"):
        require_packages({"matting": "acme-far==2.0"})
    assert missing_packages({"inpaint": "numpy==0.1"}) is not None
    assert missing_packages({"inpaint": f"numpy=={np.__version__}"}) is None


@pytest.mark.slow
def test_ray_workers_without_the_package_stop_the_job(site: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    mined.green_screen(tmp_path / "films/disc.mp4", 3, frames=10)
    # only this process has the folder on its search path; workers inherit the environment's
    start = f"import sys; sys.path.insert(0, {str(site)!r}); from layerflow.cli.main import main; "
    command = [sys.executable, "-c", start + "main()", "mine", tmp_path / "films"]
    command += ["--out", tmp_path / "out", "--size", "96x128", "--frames", "8", "--fps", "10"]
    command += ["--gate", "off", "--matting", "acme-green", "--workers", "1", "--quiet"]
    known = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=known)
    assert done.returncode == 2
    assert f"matting needs the package {ACME}, which is not installed on" in done.stderr
    assert "install it on every machine that runs Ray workers" in done.stderr


def test_recipes_of_built_in_parts_keep_their_hashes() -> None:
    captions = Captions(model="vlm")
    assert "captioner" not in captions.model_dump(mode="json")
    said = {"inputs": ["a"], "out": "b", "size": "96x128", "matting": "motion"}
    content = MineOptions.model_validate({**said, "captions": captions}).model_dump(mode="json")
    plain = make_recipe("mined", content, 6, {})
    assert plain.hash == "6437e494a0125d23"
    assert make_recipe("mined", content, 6, {"matting": ACME}).hash != plain.hash


def test_a_captioner_needs_a_model_unless_a_package_has_it() -> None:
    with pytest.raises(ValueError, match="model is needed"):
        Captions()
    with pytest.raises(ValueError, match="unknown captioner 'acme'"):
        make_captioner(Captions(captioner="acme"))
