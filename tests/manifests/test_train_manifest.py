"""The train manifest: ready files are valid, mistakes are named, rules pick what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerflow.model.layers import given_layers
from manifests.train import TrainManifest, load, parse
from manifests.train_stage import Lora, block_indices
from tests.support import ROOT

FOLDER = ROOT / "manifests"


def document(**changes: Any) -> dict[str, Any]:
    stage = {
        "name": "base",
        "steps": 10,
        "lr": 1e-3,
        "trains": "full",
        "mixture": [{"latents": "video"}],
    }
    stage |= changes.pop("stage", {})
    return {"model": "m", "stages": [stage]} | changes


READY = ["demo-train", "overfit-one-clip", "schedule-check", "layerflow-2b", "layerflow-2b-one-gpu"]


@pytest.mark.parametrize("name", READY)
def test_ready_manifests_are_valid(name: str) -> None:
    manifest = load(FOLDER / f"{name}.yaml")
    assert manifest.stages
    for stage in manifest.stages:
        assert all(component.latents in manifest.latents for component in stage.mixture)


def test_the_paper_s_numbers_are_in_the_2b_manifest() -> None:
    manifest = load(FOLDER / "layerflow-2b.yaml")
    base, motion, content = manifest.stages
    assert manifest.batch == 96 and manifest.optimizer.clip == 0.1
    assert (base.lr, motion.lr, content.lr) == (1e-4, 1e-3, 5e-3)
    assert not isinstance(base.trains, str)
    assert block_indices(base.trains.blocks, 30) == [5, 11, 17, 23, 29]
    assert isinstance(motion.trains, Lora) and isinstance(content.trains, Lora)
    assert (motion.trains.rank, motion.trains.alpha) == (8, 1)
    assert (content.trains.rank, content.trains.alpha) == (256, 1)
    assert motion.mixture[0].latents == "frozen" and motion.mixture[0].motion_gate == 1
    assert [c.motion_gate for c in content.mixture] == [1, 0]


def test_a_stage_that_leaves_out_what_was_learnt_is_found() -> None:
    first = document()["stages"][0]
    both = {"tasks": {"generate": 1, "decompose": 1}}
    motion = {"name": "motion", "trains": {"lora": "motion"}}
    content = {"name": "content", "trains": {"lora": "content"}}
    stages = [first | both, first | motion, first | content]
    assert parse(document(stages=stages)).dropped_tasks() == {"content": ["decompose"]}
    unweighted = {"tasks": {"generate": 1, "decompose": 0}}
    stages[2] |= unweighted
    assert parse(document(stages=stages)).dropped_tasks() == {"content": ["decompose"]}
    stages[2] |= both
    assert parse(document(stages=stages)).dropped_tasks() == {}


@pytest.mark.parametrize("name", sorted({*READY, "quickstart"} - {"schedule-check"}))
def test_ready_manifests_keep_what_they_taught(name: str) -> None:
    dropped = load(FOLDER / f"{name}.yaml").dropped_tasks()
    assert "content" not in dropped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": 1}, "modle"),
        ({"batch": 0}, "batch"),
        ({"batch": "many"}, "batch"),
        ({"seed": -1}, "seed"),
        ({"stages": []}, "stages"),
        ({"stage": {"lr": float("nan")}}, r"stages\[0\].lr"),
        ({"stage": {"mixture": []}}, r"stages\[0\].mixture"),
        ({"stage": {"mixture": [{"latents": "v", "motion_gate": 2}]}}, "motion_gate"),
        ({"stage": {"trains": "some"}}, r"stages\[0\].trains"),
        ({"stage": {"trains": {"lora": "motion", "rank": 0}}}, r"trains.rank"),
        ({"stage": {"trains": {"blocks": "every none"}}}, r"stages\[0\].trains.blocks"),
        ({"stage": {"tasks": {"invent": 1}}}, "unknown task 'invent'"),
        ({"stage": {"tasks": {"generate": 0}}}, "weight above 0"),
        ({"stage": {"ema": 1.0}}, "ema"),
        ({"stage": {"name": "a/b"}}, r"stages\[0\].name"),
        ({"batch": 6, "accumulate": 4}, "does not divide among 1 workers x 4 accumulation"),
        ({"validation": {"latents": "v", "timesteps": [1000]}}, "0..999"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "each beta"),
        (
            {
                "optimizer": {"kind": "adamw8bit"},
                "stages": [document()["stages"][0] | {"parallel": "fsdp"}],
            },
            "fsdp trains with adamw, not with adamw8bit",
        ),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(document(**changes))


def test_two_stages_of_one_name_are_refused() -> None:
    stage = document()["stages"][0]
    with pytest.raises(ValueError, match="names must differ"):
        parse(document(stages=[stage, stage]))


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    with pytest.raises(ValueError, match="no such manifest"):
        load(path)
    for text, message in (
        ("a: [", "not YAML"),
        ("- 1", "a manifest is a mapping"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("#" * (1 << 21), "larger than"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load(path)


def test_overrides_replace_fields_and_are_checked(tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(document(out="there")))
    assert load(path, out=None, workers=2).out == "there"
    said = load(path, out="here", model="other")
    assert (said.out, said.model) == ("here", "other")
    with pytest.raises(ValueError, match="workers"):
        load(path, workers=-1)


def test_tasks_name_the_given_layers() -> None:
    assert given_layers("generate") == ()
    assert given_layers("decompose") == ("blended",)
    assert given_layers("fg2bg") == ("foreground", "alpha")
    assert given_layers("blended+alpha") == ("alpha", "blended")
    for wrong in ("", "foreground+foreground", "foreground+alpha+background+blended"):
        with pytest.raises(ValueError, match="unknown task"):
            given_layers(wrong)


def test_block_rules() -> None:
    assert block_indices("all", 3) == [0, 1, 2]
    assert block_indices("every 2", 5) == [1, 3]
    assert block_indices([3, 0], 4) == [0, 3]
    for rule in ("every 9", [4], [-1], []):
        with pytest.raises(ValueError, match="blocks 0 to 3"):
            block_indices(rule, 4)


def test_folders_by_name_or_path() -> None:
    manifest: TrainManifest = parse(document(latents={"video": "data/v"}))
    assert manifest.folder("video") == "data/v" and manifest.folder("x/y") == "x/y"
    with pytest.raises(ValueError, match="no stage 'x'"):
        manifest.stage("x")


def test_fewer_workers_make_more_passes_of_the_same_size() -> None:
    from manifests.train import TrainManifest

    stage = {"name": "a", "steps": 1, "lr": 1.0, "trains": "full", "mixture": [{"latents": "x"}]}
    fields = {"model": "m", "batch": 8, "accumulate": 2, "stages": [stage], "workers": 4}
    manifest = TrainManifest.model_validate(fields | {"min_workers": 1})
    assert [manifest.passes(manifest.stages[0], n) for n in (4, 3, 2, 1)] == [2, 3, 4, 8]
    rigid = TrainManifest.model_validate(fields)
    with pytest.raises(ValueError, match="among 3 workers"):
        rigid.passes(rigid.stages[0], 3)
    with pytest.raises(ValueError, match="min_workers is 5, workers only 4"):
        TrainManifest.model_validate(fields | {"min_workers": 5})
