"""`layerflow runs`: the training runs below a folder, and where each stands."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from layerflow.documents import read_json
from manifests.yaml_file import on_screen
from trainer import metrics
from trainer.checkpoint import stage_steps
from trainer.tracking.state import read_state

DEPTH = 4
"""How many folders below the given one a run may lie."""
LAST = 20  # steps over which loss and speed are taken


@dataclass(frozen=True)
class RunInfo:
    """Where a run stands.

    state: `running`, `finished`, `stopped` or `failed`, as far as its files say; why: of that.
    stage: the first that is not done (else the last), and how many of its steps are. loss: mean of
    the stage's last steps in metrics.csv, None before the first. left: seconds to the end of the
    stage at the speed of these steps, None unless it runs. after: stages that come after it.
    """

    folder: Path
    state: str
    stage: str
    step: int
    steps: int
    loss: float | None
    left: float | None
    after: int
    why: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "folder": str(self.folder)}


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders with a `run.json` of a training, not those inside of them, in order of names."""
    if (folder / "run.json").is_file():
        yield folder
        return
    if depth:
        with os.scandir(folder) as entries:
            inside = sorted(e.path for e in entries if e.is_dir(follow_symlinks=False))
        for path in inside:
            yield from find_runs(Path(path), depth - 1)


def describe(folder: Path) -> RunInfo:
    """Where the run of a folder stands. ValueError for files that are none of a run."""
    manifest = read_json(folder / "run.json", {"manifest": dict})["manifest"]
    try:
        stages = [(str(stage["name"]), int(stage["steps"])) for stage in manifest["stages"]]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder}/run.json is no record of a training") from None
    undone = [i for i, (name, steps) in enumerate(stages) if stage_steps(folder, name) < steps]
    number = undone[0] if undone else len(stages) - 1
    name, steps = stages[number]
    path = folder / "metrics.csv"
    rows = [row for row in metrics.read(path) if row["stage"] == name] if path.is_file() else []
    last, state, why = rows[-LAST:], *read_state(folder)
    step = rows[-1]["stage_step"] if rows else 0
    if state == "ended":
        state = "stopped" if undone else "finished"
    speed = median(row["seconds"] for row in last) if last and state == "running" else None
    return RunInfo(
        folder=folder,
        state=state,
        stage=name,
        step=step,
        steps=steps,
        loss=fmean(row["loss"] for row in last) if last else None,
        left=None if speed is None else (steps - step) * speed,
        after=len(stages) - 1 - number,
        why=why,
    )


def lines(runs: Sequence[RunInfo], root: Path) -> list[str]:
    """A line a run, in columns."""
    table = [("run", "state", "stage", "step", "loss", "left", "")]
    for run in runs:
        left = "" if run.left is None else f"{run.left / 60:.1f} min"
        if left and run.after:
            left += f" + {run.after} stage{'s' if run.after > 1 else ''}"
        table.append(
            (
                str(run.folder.relative_to(root)) if run.folder != root else str(root),
                run.state,
                run.stage,
                f"{run.step}/{run.steps}",
                "" if run.loss is None else f"{run.loss:.4f}",
                left,
                run.why,
            )
        )
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        on_screen(["  ".join(map(str.ljust, row, widths)).rstrip()], width=1000) for row in table
    ]
