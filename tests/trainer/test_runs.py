"""What runs say of themselves: their state, the list of them, an early end, what was restored."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from manifests.train import TrainManifest, parse
from tests.support.trainer_kit import Killed, kill_at, make_manifest, same, weights
from trainer import loop, metrics
from trainer.checkpoint import checkpoints, stage_steps
from trainer.tracking.runs import describe, find_runs
from trainer.tracking.state import STATE, read_state


def silent(line: str) -> None:
    pass


def shown(*arguments: object) -> str:
    done = CliRunner().invoke(build_app(), ["runs", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


# ---- where runs stand -------------------------------------------------------------------------


def test_runs_are_listed_with_where_they_stand(tmp_path: Path) -> None:
    first = make_manifest(tmp_path, out=str(tmp_path / "runs/first"), log_every=1)
    assert loop.train(first, first.out, log=silent)
    second = first.model_copy(update={"out": str(tmp_path / "runs/deeper/second")})
    seen: list[str] = []

    def look(row: dict[str, Any]) -> None:
        if row["step"] == 8:
            seen.append(shown(tmp_path / "runs", "--json"))
            raise Killed  # no error: as an interruption from outside

    with pytest.raises(Killed):
        loop.train(second, second.out, log=silent, report=look)
    third = first.model_copy(update={"out": str(tmp_path / "runs/third"), "max_skips": 1})

    def fails(row: dict[str, Any]) -> None:
        raise ValueError("no such thing at https://me:secret@host/x")

    with pytest.raises(ValueError, match="no such thing"):
        loop.train(third, third.out, log=silent, report=fails)

    while_it_ran = {Path(run["folder"]).name: run for run in json.loads(seen[0])}
    assert while_it_ran["second"]["state"] == "running"
    assert while_it_ran["second"]["left"] > 0 and while_it_ran["first"]["left"] is None
    rows = metrics.read(Path(second.out) / "metrics.csv")
    runs = {run.folder.name: run for run in map(describe, find_runs(tmp_path / "runs"))}
    assert [runs[name].state for name in ("first", "second", "third")] == [
        "finished", "stopped", "failed",
    ]  # fmt: skip
    assert (runs["first"].stage, runs["first"].step, runs["first"].steps) == ("content", 4, 4)
    assert (runs["second"].stage, runs["second"].step, runs["second"].after) == ("motion", 3, 1)
    mean = sum(row["loss"] for row in rows if row["stage"] == "motion") / 3
    assert runs["second"].loss == pytest.approx(mean)
    assert "no such thing" in runs["third"].why and "secret" not in runs["third"].why
    lines = shown(tmp_path / "runs").splitlines()
    assert lines[0].split() == ["run", "state", "stage", "step", "loss", "left"]
    assert lines[1].split()[:4] == ["deeper/second", "stopped", "motion", "3/4"]
    assert shown(first.out).splitlines()[1].split()[1:4] == ["finished", "content", "4/4"]
    assert shown(tmp_path / "model").startswith("no training runs below")


def test_a_process_that_is_gone_has_failed_and_another_machine_is_believed(tmp_path: Path) -> None:
    me = psutil.Process()
    said = {"host": socket.gethostname(), "pid": os.getpid(), "started": me.create_time()}

    def state(**changes: Any) -> str:
        record = {**said, "ended": False, "error": None, **changes}
        (tmp_path / STATE).write_text(json.dumps(record))
        return read_state(tmp_path)[0]

    assert state() == "running"
    assert state(started=me.create_time() - 60) == "failed"  # the number went to another process
    assert state(host="elsewhere", started=0) == "running"
    assert state(ended=True) == "ended"


def test_a_run_of_another_manifest_keeps_its_state(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    assert loop.train(manifest, manifest.out, only="base", log=silent)
    before = (tmp_path / "out" / STATE).read_bytes()
    with pytest.raises(ValueError, match="seed"):
        loop.train(manifest.model_copy(update={"seed": 8}), manifest.out, log=silent)
    assert (tmp_path / "out" / STATE).read_bytes() == before


def test_a_resume_says_what_it_restored(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, save_every=2)
    with pytest.raises(Killed):
        loop.train(manifest, manifest.out, log=silent, report=kill_at(4))
    said: list[str] = []
    assert loop.train(manifest, manifest.out, log=said.append)
    assert said[1] == (
        "base: goes on after step 4 of 5: weights, average, moments of 4 updates from "
        "checkpoints/base-00000004"
    )


# ---- early end --------------------------------------------------------------------------------


def patient(folder: Path, name: str, **changes: Any) -> TrainManifest:
    """A base stage of 40 steps at a rate at which held-out losses go up and down, and a stage
    after it."""
    manifest = make_manifest(folder)
    stages = [s.model_dump() for s in manifest.stages[:2]]
    stages[0] |= {"steps": 40, "lr": 0.05, "ema": None, "patience": {"validations": 2}}
    options = {"latents": "video", "every": 2, "clips": 2, "timesteps": [500]}
    document = manifest.model_dump() | {
        "stages": stages, "validation": options, "out": str(folder / name),
    }  # fmt: skip
    return parse(document | changes)


def expected_end(rows: list[dict[str, Any]], limit: int) -> int:
    """By the rule, from the losses that validation.csv has."""
    best, since = float("inf"), 0
    for step in sorted({row["step"] for row in rows}):
        losses = [row["loss"] for row in rows if row["step"] == step]
        mean = sum(losses) / len(losses)
        best, since = (mean, 0) if mean < best else (best, since + 1)
        if since == limit:
            return step
    raise AssertionError("the rule never holds")


def test_a_stage_ends_when_its_held_out_loss_falls_no_more(tmp_path: Path) -> None:
    said: list[str] = []
    whole = patient(tmp_path, "whole")
    assert loop.train(whole, whole.out, log=said.append)
    base = [r for r in metrics.read(tmp_path / "whole/validation.csv") if r["stage"] == "base"]
    end = expected_end(base, 2)
    assert end < 40 and max(row["step"] for row in base) == end
    assert any(line.startswith(f"base: ended after step {end} of 40") for line in said)
    about = json.loads((tmp_path / "whole/stages/base/stage.json").read_text())
    assert about == {"stage": "base", "steps": 40, "ended": end}
    assert stage_steps(tmp_path / "whole", "motion") == 4  # the next stage went on from it
    assert loop.train(whole, whole.out, log=said.append) and "done before" in said[-1]


def test_an_early_end_is_exact_under_resume(tmp_path: Path) -> None:
    """Stopped between two validations, at one, and after the last checkpoint before the export."""
    whole = patient(tmp_path, "whole")
    assert loop.train(whole, whole.out, log=silent)
    base = [r for r in metrics.read(tmp_path / "whole/validation.csv") if r["stage"] == "base"]
    end = expected_end(base, 2)
    broken = patient(tmp_path, "broken", save_every=1)
    for step in (1, 2, end - 1, end):
        with pytest.raises(Killed):
            loop.train(broken, broken.out, log=silent, report=kill_at(step))
    assert [path.name for path in checkpoints(tmp_path / "broken", "base")][-1].endswith(str(end))
    assert loop.train(broken, broken.out, log=silent)
    assert same(weights(tmp_path / "broken/export"), weights(tmp_path / "whole/export"))
    rows = [metrics.read(tmp_path / name / "validation.csv") for name in ("whole", "broken")]
    assert rows[0] == rows[1]


def test_patience_needs_a_validation_and_then_its_cadence_is_part_of_the_run(
    tmp_path: Path,
) -> None:
    manifest = patient(tmp_path, "out")
    with pytest.raises(ValueError, match="it needs a `validation`"):
        parse(manifest.model_dump() | {"validation": None})
    assert loop.train(manifest, manifest.out, only="base", log=silent)
    assert manifest.validation is not None

    def other(**changes: Any) -> TrainManifest:
        assert manifest.validation is not None
        changed = manifest.validation.model_copy(update=changes)
        return manifest.model_copy(update={"validation": changed})

    with pytest.raises(ValueError, match=r"validation\.every: 2 -> 3"):
        loop.train(other(every=3), manifest.out, log=silent)
    assert loop.train(other(sample_steps=3), manifest.out, only="base", log=silent)
