"""`layerflow new` writes manifests that run as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from layerflow import front
from layerflow.cli.main import build_app
from manifests import common
from manifests.schema import BuildManifest
from manifests.starters import corpus_manifest, train_manifest
from manifests.train import load
from manifests.yaml_file import parse_yaml
from tests.support import packed, pasted


def run(*arguments: object) -> str:
    done = CliRunner().invoke(build_app(), [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and latents of two pasted clips and a still."""
    folder = tmp_path_factory.mktemp("new")
    fg, bg = pasted.stills(folder / "fg"), pasted.backdrops(folder / "bg")
    said = {"size": (32, 32), "frames": 4, "workers": 0}
    front.paste(fg, bg, folder / "pasted", 2, **said)
    packed.write(folder / "stills/a.png", packed.disc())
    packed.write(folder / "stills/a.bg.png", packed.slope())
    front.pack(folder / "stills", folder / "packed", size=(32, 32), workers=0)
    front.init(folder / "model", "tiny")
    for name in ("pasted", "packed"):
        front.encode(folder / name, folder / "model", folder / f"latents-{name}", workers=0)
    return folder


def test_a_new_train_manifest_plans_and_names_the_stages_that_the_data_allow(made: Path) -> None:
    both = ["--latents", f"video={made}/latents-pasted", "--latents", made / "latents-packed"]
    file = made / "train.yaml"
    run("new", "train", file, "--model", made / "model", "--out", made / "run", *both)
    manifest = load(file)
    assert [stage.name for stage in manifest.stages] == ["base", "motion", "content"]
    assert manifest.batch == 2 and manifest.micro_batch in (1, 2)
    assert "video has 2 pasted; latents-packed has 1 image" in file.read_text()
    assert "content" in run("train", file, "--plan")


def test_without_stills_there_is_no_content_stage_and_the_file_says_why(made: Path) -> None:
    text = train_manifest("m", "r", {"v": ("l", {"mined": 40})}, parameters=2_000_000_000)
    assert "name: content" not in text and "content stage is left out" in text
    assert "batch: 8 " in text and "bf16" in text
    with pytest.raises(ValueError, match="base stage needs some"):
        train_manifest("m", "r", {"s": ("l", {"image": 9})}, parameters=1)


def test_a_name_with_yaml_in_it_stays_one_value() -> None:
    odd = "a: b # c\n- d"
    text = corpus_manifest(
        videos=[odd], out="o", size="48x64", frames=4, fps=7.5, count=3, backgrounds=["b"]
    )
    assert text.count("\n  - job:") == 2
    assert parse_yaml(text, "m")["jobs"][0]["inputs"] == [odd]
    for name in (odd, "yes", "1.5", "null"):
        text = train_manifest(name, "r", {name: (name, {"pasted": 3})}, parameters=1)
        content = parse_yaml(text, "m")
        assert content["model"] == name and content["latents"] == {name: name}
        assert content["stages"][0]["mixture"][0]["latents"] == name


def test_a_new_corpus_manifest_builds(made: Path) -> None:
    file = made / "corpus.yaml"
    there = ["--cutouts", made / "fg", "--backgrounds", made / "bg", "--stills", made / "stills"]
    how = ["--out", made / "built", "--size", "32x32", "--frames", 4, "--count", 2]
    run("new", "corpus", file, *there, *how)
    assert [job.job for job in common.load(file, BuildManifest).jobs] == ["paste", "pack"]
    run("build", file, "--workers", 0, "--quiet")
    assert {p.name for p in (made / "built").iterdir()} == {"pasted", "stills"}


def test_files_are_not_replaced_and_inputs_must_be_there(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("mine")
    app = build_app()
    for more, message in (([], "is there already"), (["--stills", "nowhere"], "no such file")):
        done = CliRunner().invoke(app, ["new", "corpus", str(file), "--videos", str(made), *more])
        assert isinstance(done.exception, ValueError) and message in str(done.exception)
    assert file.read_text() == "mine"
