"""Trackers: TensorBoard's real writer, and doubles of the public calls of W&B and MLflow."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manifests.train import TrainManifest
from tests.support.trainer_kit import Killed
from tests.support.training_runs import with_validation
from trainer import loop, metrics
from trainer.tracking.trackers import RECORD, MLflow, Trackers


def silent(line: str) -> None:
    pass


class FakeWandB:
    """`wandb.init`, `wandb.Video` and what a run has; it drops steps that do not rise, as W&B."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.dropped: list[int] = []
        self.axes: dict[str, str | None] = {}
        self.open = 0

    def init(
        self,
        entity: str | None = None,
        project: str | None = None,
        dir: str | None = None,
        id: str | None = None,
        name: str | None = None,
        resume: bool | str | None = None,
    ) -> Any:
        assert project == "layers" and resume == "allow" and self.open == 0
        run, self.open = id or f"r{len(self.runs)}", 1
        rows = self.runs.setdefault(run, [])

        def log(data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
            at = len(rows) if step is None else step
            if rows and at < rows[-1][0]:
                self.dropped.append(at)
            else:
                rows.append((at, data))

        def define_metric(name: str, step_metric: str | None = None) -> None:
            self.axes[name] = step_metric

        def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
            self.open = 0

        return SimpleNamespace(id=run, log=log, define_metric=define_metric, finish=finish)

    def Video(
        self,
        data_or_path: str,
        caption: str | None = None,
        fps: int | None = None,
        format: str | None = None,
    ) -> Any:
        assert format == "mp4" and Path(data_or_path).read_bytes()[4:8] == b"ftyp"
        return ("video", Path(data_or_path).name)


class FakeMLflow:
    """The functions of `mlflow` that are used, with the arguments that they have."""

    def __init__(self) -> None:
        self.experiment, self.active = "", ""
        self.metrics: dict[str, list[tuple[str, float, int]]] = {}
        self.artifacts: list[tuple[str, str]] = []

    def set_experiment(
        self, experiment_name: str | None = None, experiment_id: str | None = None
    ) -> None:
        self.experiment = experiment_name or ""

    def start_run(
        self,
        run_id: str | None = None,
        experiment_id: str | None = None,
        run_name: str | None = None,
        nested: bool = False,
    ) -> Any:
        assert not self.active, "a run is active"
        self.active = run_id or f"m{len(self.metrics)}"
        self.metrics.setdefault(self.active, [])
        return SimpleNamespace(info=SimpleNamespace(run_id=self.active))

    def log_metrics(
        self, metrics: dict[str, float], step: int | None = None, synchronous: bool | None = None
    ) -> None:
        assert step is not None and not any("+" in name for name in metrics)
        self.metrics[self.active] += [(name, value, step) for name, value in metrics.items()]

    def log_artifact(self, local_path: str, artifact_path: str | None = None) -> None:
        assert Path(local_path).is_file()
        self.artifacts.append((Path(local_path).name, artifact_path or ""))

    def end_run(self, status: str = "FINISHED") -> None:
        self.active = ""


def test_a_killed_run_goes_on_in_the_same_runs_of_all_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb, mlflow = FakeWandB(), FakeMLflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    manifest = with_validation(
        tmp_path, tensorboard=True, wandb="layers", mlflow="layers", log_every=4, save_every=2
    )
    stages = [manifest.stages[0]]
    manifest = manifest.model_copy(update={"stages": stages})

    def report(row: dict[str, Any]) -> None:
        if row["step"] == 4:
            wandb.open, mlflow.active = 0, ""  # their processes end with ours
            raise Killed

    with pytest.raises(Killed):
        loop.train(manifest, manifest.out, log=silent, report=report)
    time.sleep(1.0 - time.time() % 1.0)  # TensorBoard's files are ordered by the second
    assert loop.train(manifest, manifest.out, log=silent)
    rows = metrics.read(tmp_path / "out/metrics.csv")
    ((run, logged),) = wandb.runs.items()
    assert wandb.dropped == [] and wandb.open == 0
    losses = {step: data["train/loss"] for step, data in logged if "train/loss" in data}
    assert losses == {row["step"]: row["loss"] for row in rows} and len(rows) == 5
    held_out = {step for step, data in logged if "held_out/generate" in data}
    assert held_out == {3, 5}
    clips = [(data["samples/step"], data["samples/generate-1"]) for _, data in logged
             if "samples/step" in data]  # fmt: skip
    assert clips == [(3, ("video", "generate-1.mp4")), (5, ("video", "generate-1.mp4"))]
    assert wandb.axes == {"samples/step": None, "samples/*": "samples/step"}
    assert any("samples/decompose/iou" in data for _, data in logged)

    ((_, told),) = mlflow.metrics.items()
    assert mlflow.experiment == "layers" and mlflow.active == ""
    assert [v for n, v, _ in told if n == "train/loss"] == [row["loss"] for row in rows]
    assert {step for n, _, step in told if n == "samples/decompose/iou"} == {3, 5}
    assert sorted(set(mlflow.artifacts))[0] == ("decompose-0.mp4", "samples/00000003")
    assert len(mlflow.artifacts) == len(set(mlflow.artifacts)) == 8

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out/tensorboard"))
    events.Reload()
    curve = events.Scalars("train/loss")
    assert [e.step for e in curve] == [1, 2, 3, 4, 5]
    assert [e.value for e in curve] == pytest.approx([row["loss"] for row in rows], rel=1e-6)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["wandb"] == {"run": run, "samples": ["00000003", "00000005"]}


def manifest_of(tmp_path: Path, **changes: Any) -> TrainManifest:
    return with_validation(tmp_path).model_copy(update=changes)


def test_a_tracker_that_fails_is_said_once_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = FakeMLflow()

    def unreachable(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("http://me:secret@tracking: refused")

    monkeypatch.setattr(mlflow, "log_metrics", unreachable)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    said: list[str] = []
    trackers = Trackers(tmp_path, manifest_of(tmp_path / "m", mlflow="x"), 0, said.append)
    trackers.scalars(1, {"train/loss": 1.0})
    trackers.scalars(2, {"train/loss": 0.5})
    trackers.close()
    assert len(said) == 1 and said[0].startswith("mlflow: no more figures") and "refused" in said[0]
    assert "secret" not in said[0]


def test_a_tracker_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match="mlflow is not installed: pip install mlflow"):
        Trackers(tmp_path, manifest_of(tmp_path / "m", mlflow="x"), 0)


def test_tasks_have_names_that_mlflow_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    tracker = MLflow(tmp_path, "x", None)
    tracker.scalars(3, {"held_out/foreground.2+alpha.2": 0.5})
    assert mlflow.metrics["m0"] == [("held_out/foreground.2_alpha.2", 0.5, 3)]
