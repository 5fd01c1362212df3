"""Where curves and clips go beside the CSV files: TensorBoard, W&B, MLflow.

`metrics.csv` and `validation.csv` are the truth; a tracker shows what is in them. One that fails is
said and left alone for the rest of the stage, and does not end the run. `OUT/trackers.json` keeps
which run of a tracker this one is, so that a continued run goes on there, and which clips it has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from layerflow.documents import read_json
from layerflow.files import write_json
from layerflow.locations import without_secrets
from manifests.train import TrainManifest

RECORD = "trackers.json"
WEIGHTS = "weights.safetensors"  # in a folder of samples as long as they are not done


class Tracker(Protocol):
    """One place for figures. name: as the manifest calls it. run: which one of its runs this is,
    None where it does not say."""

    name: str
    run: str | None

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Figures of one step, `group/name` -> number. Steps only rise."""

    def samples(self, step: int, clips: Sequence[Path], scores: Mapping[str, float]) -> None:
        """Clips (MP4) that were sampled from the weights of a step, and their scores. They come
        when they are ready, which may be some steps later."""

    def close(self) -> None:
        """The stage is over."""


class TensorBoard:
    """`OUT/tensorboard`. Clips are not written here: the job that samples them does it, in a run
    of their own (`trainer.sampling.to_tensorboard`), wherever it runs."""

    name = "tensorboard"

    def __init__(self, out: Path, resume_at: int) -> None:
        self.run: str | None = None
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=resume_at + 1)

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def samples(self, step: int, clips: Sequence[Path], scores: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of a W&B project. It drops steps that it has seen, so after a resume from an earlier
    checkpoint the curve goes on where it ended."""

    name = "wandb"

    def __init__(self, out: Path, project: str, run: str | None) -> None:
        self.client = library("wandb")
        self.opened = self.client.init(
            project=project, dir=str(out), name=out.name, id=run, resume="allow"
        )
        self.run: str | None = self.opened.id
        self.opened.define_metric("samples/step")
        self.opened.define_metric("samples/*", step_metric="samples/step")
        self.latest: int | None = None

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        self.latest = step
        self.opened.log(dict(numbers), step=step)

    def samples(self, step: int, clips: Sequence[Path], scores: Mapping[str, float]) -> None:
        media = {f"samples/{p.stem}": self.client.Video(str(p), format="mp4") for p in clips}
        figures = {f"samples/{name}": value for name, value in scores.items()}
        # with the newest step: an own one would make W&B drop the steps that are to come
        self.opened.log({"samples/step": step, **media, **figures}, step=self.latest)

    def close(self) -> None:
        self.opened.finish()


class MLflow:
    """A run of an MLflow experiment, at `MLFLOW_TRACKING_URI`. Clips are artifacts."""

    name = "mlflow"

    def __init__(self, out: Path, experiment: str, run: str | None) -> None:
        self.client = library("mlflow")
        self.client.set_experiment(experiment)
        started = self.client.start_run(run_id=run, run_name=None if run else out.name)
        self.run: str | None = started.info.run_id

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        self.client.log_metrics({_named(n): float(v) for n, v in numbers.items()}, step=step)

    def samples(self, step: int, clips: Sequence[Path], scores: Mapping[str, float]) -> None:
        for clip in clips:
            self.client.log_artifact(str(clip), artifact_path=f"samples/{step:08d}")
        self.scalars(step, {f"samples/{name}": value for name, value in scores.items()})

    def close(self) -> None:
        self.client.end_run()


def _named(name: str) -> str:
    """MLflow's names have no `+`, which tasks may."""
    return re.sub(r"[^\w\-. /:]", "_", name)


def library(name: str) -> Any:
    """An optional package, or ValueError that says how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} is not installed: pip install {name}, or leave it out") from error


class Trackers:
    """All trackers of a manifest, on rank 0, for one stage."""

    def __init__(
        self,
        out: Path,
        manifest: TrainManifest,
        resume_at: int,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.out, self.log = out, log
        self.record: dict[str, Any] = {}
        if (out / RECORD).is_file():
            self.record = read_json(out / RECORD)
        self.open: list[Tracker] = []
        if manifest.tensorboard:
            self.open.append(TensorBoard(out, resume_at))
        if manifest.wandb:
            self.open.append(WandB(out, manifest.wandb, self._run("wandb")))
        if manifest.mlflow:
            self.open.append(MLflow(out, manifest.mlflow, self._run("mlflow")))
        for tracker in self.open:
            if tracker.run is not None:
                self.record.setdefault(tracker.name, {"samples": []})["run"] = tracker.run
                write_json(out / RECORD, self.record)

    def _run(self, name: str) -> str | None:
        said = self.record.get(name, {}).get("run")
        return str(said) if said else None

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        for tracker in list(self.open):
            self._try(tracker, partial(tracker.scalars, step, numbers))

    def samples(self) -> None:
        """Pass on clips that have been sampled since."""
        for tracker in [t for t in self.open if t.run is not None]:
            told = self.record[tracker.name]["samples"]
            for folder in sorted((self.out / "samples").glob("*/")):
                done = (folder / "metrics.json").is_file() and not (folder / WEIGHTS).is_file()
                if not done or folder.name in told or tracker not in self.open:
                    continue
                scores = {
                    f"{task}/{name}": measure["mean"]
                    for task, measures in read_json(folder / "metrics.json")["tasks"].items()
                    for name, measure in measures.items()
                }
                clips = sorted(folder.glob("*.mp4"))
                step = int(folder.name)
                self._try(tracker, partial(tracker.samples, step, clips, scores))
                told.append(folder.name)
                write_json(self.out / RECORD, self.record)

    def close(self) -> None:
        self.samples()
        for tracker in list(self.open):
            self._try(tracker, tracker.close)
        self.open.clear()

    def _try(self, tracker: Tracker, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of any kind: it depends on what stands behind the tracker
            self.open.remove(tracker)
            text = without_secrets(f"{type(error).__name__}: {error}")[:300]
            self.log(f"{tracker.name}: no more figures in this stage: {text}")
