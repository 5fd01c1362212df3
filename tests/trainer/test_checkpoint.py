"""Checkpoints: complete or absent, only for the run that they belong to."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manifests.train import TrainManifest, parse
from manifests.train_stage import Optimizer
from tests.support.trainer_kit import make_latents, make_manifest, make_model, same
from trainer import checkpoint, loop, metrics
from trainer.checkpoint import Position
from trainer.claim import claim
from trainer.export import copy_tree, load_model
from trainer.stages import Trained
from trainer.tracking.identity import differences, identity
from trainer.upload import MARKER

CPU = torch.device("cpu")


def changed(manifest: TrainManifest, **changes: Any) -> TrainManifest:
    return manifest.model_copy(update=changes)


def with_stage(manifest: TrainManifest, index: int, **changes: Any) -> TrainManifest:
    stages = list(manifest.stages)
    stages[index] = stages[index].model_copy(update=changes)
    return changed(manifest, stages=stages)


def test_a_changed_manifest_is_refused_with_the_difference(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    out = tmp_path / "out"
    assert claim(out, manifest) is False and claim(out, manifest) is True
    with pytest.raises(ValueError, match=r"seed: 7 -> 8"):
        claim(out, changed(manifest, seed=8))
    with pytest.raises(ValueError, match=r"stages\[1\].lr: 0.005 -> 0.1"):
        claim(out, with_stage(manifest, 1, lr=0.1))
    with pytest.raises(ValueError, match=r"stages\[0\].steps: 5 -> 6"):
        claim(out, with_stage(manifest, 0, steps=6))
    with pytest.raises(ValueError, match=r"stages\[2\].steps: 4 -> 3"):
        claim(out, with_stage(manifest, 2, steps=3))
    assert claim(out, with_stage(manifest, 2, steps=9))
    free = {"workers": 2, "log_every": 1, "save_every": 9, "prefetch": 0, "keep_last": 5}
    assert claim(out, changed(with_stage(manifest, 2, steps=9), **free))


def test_runs_from_before_warm_up_and_decay_groups_go_on_as_they_began(tmp_path: Path) -> None:
    """Or are refused with what differs; and their checkpoints are read."""
    manifest = make_manifest(tmp_path, save_every=2)
    old = manifest.model_dump() | {"optimizer": {"decay_on": "all"}}
    old["stages"] = [stage | {"ema_warmup": False} for stage in old["stages"]]

    def die(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(parse(old), manifest.out, log=lambda line: None, report=die)
    for path in (tmp_path / "out/run.json", *(tmp_path / "out/checkpoints").glob("*/*.json")):
        said = json.loads(path.read_text())
        said.pop("in_a_row", None)
        for part in (*said.get("manifest", {}).get("stages", []), said.get("manifest", {})):
            part.pop("ema_warmup", None)
            (part.get("optimizer") or {}).pop("decay_on", None)
        path.write_text(json.dumps(said))
    with pytest.raises(
        ValueError, match=r"optimizer.decay_on: 'all' -> 'matrices'\s+stages\[0\].e"
    ):
        claim(tmp_path / "out", manifest)
    assert loop.train(parse(old), manifest.out, only="base", log=lambda line: None)
    whole = tmp_path / "whole"
    assert loop.train(parse(old), whole, only="base", log=lambda line: None)
    assert (whole / "stages/base/trained.safetensors").read_bytes() == (
        tmp_path / "out/stages/base/trained.safetensors"
    ).read_bytes()


def test_a_run_whose_record_names_the_usual_targets_of_its_lora_goes_on_without(
    tmp_path: Path,
) -> None:
    """Records had them written out when they were no option of the base's."""
    manifest = make_manifest(tmp_path)
    claim(tmp_path / "out", manifest)
    record = tmp_path / "out/run.json"
    said = json.loads(record.read_text())
    lora = said["manifest"]["stages"][1]["trains"]
    for targets, goes_on in ((["to_q", "to_k", "to_v", "to_out.0"], True), (["to_q"], False)):
        lora["targets"] = targets
        record.write_text(json.dumps(said))
        if goes_on:
            assert claim(tmp_path / "out", manifest)
        else:
            with pytest.raises(ValueError, match=r"stages\[1\].trains.targets: \['to_q'\] -> "):
                claim(tmp_path / "out", manifest)


def test_changed_data_or_model_is_refused_and_a_moved_one_is_not(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    claim(tmp_path / "out", manifest)
    copy_tree(tmp_path / "model", tmp_path / "moved")
    folders = manifest.latents | {"video": str(tmp_path / "video2")}
    copy_tree(tmp_path / "video", tmp_path / "video2")
    assert claim(
        tmp_path / "out", changed(manifest, model=str(tmp_path / "moved"), latents=folders)
    )
    make_latents(tmp_path / "video2", count=10, seed=9)
    with pytest.raises(ValueError, match=r"latents.video: '"):
        claim(tmp_path / "out", changed(manifest, latents=folders))
    make_model(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match=r"model.transformer: '"):
        claim(tmp_path / "out", changed(manifest, model=str(tmp_path / "other")))


def test_fresh_drops_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    out = tmp_path / "out"
    claim(out, manifest)
    (out / "checkpoints/base-00000001").mkdir(parents=True)
    (out / "metrics.csv").write_text("step\n")
    (out / "notes.txt").write_text("mine")
    assert claim(out, changed(manifest, seed=8), fresh=True) is False
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "run.json"]


def test_a_folder_with_training_state_of_unknown_origin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out/checkpoints").mkdir(parents=True)
    manifest = make_manifest(tmp_path)
    with pytest.raises(ValueError, match=r"no run.json"):
        claim(tmp_path / "out", manifest)


def test_differences_between_stage_lists_name_each_field(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    old = identity(manifest)
    new = identity(changed(manifest, stages=manifest.stages[:2]))
    lines = differences(old, new)
    assert any(line.startswith("stages[2].name: 'content' -> None") for line in lines)
    assert differences(old, json.loads(json.dumps(old))) == []


def setup(tmp_path: Path, ema: float | None = 0.9) -> tuple[Trained, torch.optim.AdamW]:
    model, _ = load_model(make_model(tmp_path / "m"), CPU)
    trained = Trained(model, ["proj_out.weight", "proj_out.bias"], ema)
    return trained, trained.optimizer(Optimizer.model_validate({}))


def test_save_and_restore_give_every_bit_back(tmp_path: Path) -> None:
    trained, optimizer = setup(tmp_path)
    for _ in range(3):
        trained.grads.normal_()
        optimizer.step()
        trained.update_average(torch.tensor(0.0), torch.tensor(9.0))
    checkpoint.save(tmp_path, "base", trained, optimizer, Position(3, 1), keep=2)
    again, optimizer2 = setup(tmp_path)
    assert checkpoint.restore(tmp_path, "base", again, optimizer2) == Position(3, 1)
    assert torch.equal(again.values, trained.values)
    assert again.average is not None and trained.average is not None
    assert torch.equal(again.average, trained.average)
    trained.grads.fill_(0.1)
    again.grads.fill_(0.1)
    optimizer.step()
    optimizer2.step()
    assert torch.equal(again.values, trained.values)
    assert checkpoint.restore(tmp_path, "motion", again, optimizer2) is None


def test_only_complete_checkpoints_count_and_old_ones_go(tmp_path: Path) -> None:
    trained, optimizer = setup(tmp_path, ema=None)
    for step in (1, 2, 3):
        trained.values.fill_(step)
        checkpoint.save(tmp_path, "base", trained, optimizer, Position(step), keep=2)
    checkpoint.save(tmp_path, "base-2", trained, optimizer, Position(7), keep=2)
    torn = tmp_path / "checkpoints/.base-00000009.tmp"
    torn.mkdir()
    (torn / "state.safetensors").write_bytes(b"half")
    names = [path.name for path in checkpoint.checkpoints(tmp_path, "base")]
    assert names == ["base-00000002", "base-00000003"]
    assert checkpoint.restore(tmp_path, "base", trained, optimizer) == Position(3)
    assert trained.values.unique().tolist() == [3.0]


def test_a_finished_stage_comes_back(tmp_path: Path) -> None:
    trained, _ = setup(tmp_path)
    trained.values.normal_()
    assert checkpoint.stage_steps(tmp_path, "base") == 0
    checkpoint.save_stage(tmp_path, "base", trained.tensors(), 5, 5)
    assert checkpoint.stage_steps(tmp_path, "base") == 5
    model, _ = load_model(tmp_path / "m", CPU)
    checkpoint.load_stage(tmp_path, "base", model)
    want = {name: p.detach() for name, p in trained.parameters.items()}
    have = {name: p.detach() for name, p in model.named_parameters() if name in want}
    assert same(have, want)
    other, _ = load_model(make_model(tmp_path / "small", layers=1), CPU)
    del other.proj_out
    with pytest.raises(ValueError, match="which the model lacks"):
        checkpoint.load_stage(tmp_path, "base", other)


def test_metrics_are_cut_at_the_step_and_torn_rows_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,stage,loss\n1,base,0.5\n2,base,nan\n3,base,0.25\n4,ba")
    metrics.rewind(path, ("step", "stage", "loss"), 2)
    assert path.read_text() == "step,stage,loss\n1,base,0.5\n2,base,nan\n"
    rows = metrics.read(path)
    assert rows[0] == {"step": 1, "stage": "base", "loss": 0.5} and rows[1]["loss"] != 0.5
    metrics.rewind(path, ("step", "stage", "loss"), 0)
    assert metrics.read(path) == []


# ---- optimizers, uploads ----------------------------------------------------------------------


def test_eight_bit_optimizer_without_its_package_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    trained, _ = setup(tmp_path)
    with pytest.raises(ValueError, match="needs bitsandbytes"):
        trained.optimizer(Optimizer.model_validate({"kind": "adamw8bit"}))


def test_eight_bit_steps_resume_exactly_and_a_bad_one_is_skipped(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra 8bit")
    options = Optimizer.model_validate({"kind": "adamw8bit"})
    folder = make_model(tmp_path / "m")

    def whole() -> Trained:  # 8-bit moments begin at 4096 values
        model, _ = load_model(folder, CPU)
        return Trained(model, [name for name, _ in model.named_parameters()], None)

    def steps(optimizer: Any, trained: Trained, numbers: range) -> None:
        for number in numbers:
            draw = torch.Generator().manual_seed(number)
            trained.grads.copy_(torch.randn(trained.grads.shape, generator=draw))
            optimizer.found_inf = torch.tensor(float(number == 2))
            optimizer.step()

    trained = whole()
    optimizer: Any = trained.optimizer(options)
    steps(optimizer, trained, range(2))
    before = trained.values.clone()
    steps(optimizer, trained, range(2, 3))
    assert torch.equal(trained.values, before)
    steps(optimizer, trained, range(3, 4))
    assert not torch.equal(trained.values, before)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert state["state1"].dtype == torch.uint8
    checkpoint.save(tmp_path, "base", trained, optimizer, Position(4), keep=1)
    steps(optimizer, trained, range(4, 8))

    again = whole()
    other: Any = again.optimizer(options)
    checkpoint.restore(tmp_path, "base", again, other)
    steps(other, again, range(4, 8))
    assert torch.equal(again.values, trained.values)


def test_eight_bit_moments_in_the_order_of_an_earlier_version_are_refused(tmp_path: Path) -> None:
    trained, optimizer = setup(tmp_path)
    checkpoint.save(tmp_path, "base", trained, optimizer, Position(1), keep=1)
    (saved,) = tmp_path.glob("checkpoints/*/state.safetensors")
    tensors = load_file(saved)
    save_file(tensors | {"optimizer/state1": torch.zeros(9)}, saved)
    with pytest.raises(ValueError, match="the order of an earlier version"):
        checkpoint.restore(tmp_path, "base", trained, optimizer)


def test_eight_bit_training_goes_where_adamw_goes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra 8bit")
    ends = {}
    for kind in ("adamw", "adamw8bit"):
        manifest = make_manifest(tmp_path / kind, optimizer={"kind": kind}, log_every=1)
        assert loop.train(manifest, manifest.out, only="base", log=lambda line: None)
        ends[kind] = [row["loss"] for row in metrics.read(Path(manifest.out) / "metrics.csv")]
    assert ends["adamw8bit"] != ends["adamw"]
    assert ends["adamw8bit"] == pytest.approx(ends["adamw"], rel=0.02)


def test_uploads_follow_the_run_and_old_checkpoints_go_there_too(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, upload=f"file://{tmp_path}/bucket/run", save_every=1)
    said: list[str] = []
    assert loop.train(manifest, manifest.out, only="base", log=said.append)
    there = tmp_path / "bucket/run"
    names = sorted(path.name for path in (there / "checkpoints").iterdir())
    assert names == ["base-00000004", "base-00000005"]
    for folder in ("checkpoints/base-00000005", "stages/base", "export"):
        here = {p.relative_to(tmp_path / "out" / folder): p.read_bytes()
                for p in (tmp_path / "out" / folder).rglob("*") if p.is_file()}  # fmt: skip
        copied = {p.relative_to(there / folder): p.read_bytes()
                  for p in (there / folder).rglob("*") if p.is_file()}  # fmt: skip
        assert copied.pop(Path(MARKER)) == b"" and copied == here
    assert not any("failed" in line for line in said)


def test_an_upload_that_fails_is_said_and_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    manifest = make_manifest(tmp_path, upload=f"{tmp_path}/file/run")
    said: list[str] = []
    assert loop.train(manifest, manifest.out, only="base", log=said.append)
    assert any("upload of base-00000005 to" in line and "failed" in line for line in said)
