"""What several workers do at the same step: stop, save by the clock, give up. Workers are threads
of this process, and their sums are made here."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from manifests.train import TrainManifest
from tests.support.trainer_kit import make_manifest, same, weights
from trainer import loop, metrics
from trainer.checkpoint import checkpoints
from trainer.distributed import signals
from trainer.distributed.processes import World

CPU = torch.device("cpu")


@dataclass
class Meeting:
    """Where the workers' tensors are added up."""

    size: int
    sums: int = 0
    tensors: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensors = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=60)


@dataclass(frozen=True)
class Beside(World):
    meeting: Meeting

    def add_up(self, tensor: torch.Tensor) -> None:
        self.meeting.tensors[self.rank] = tensor.clone()
        if self.meeting.barrier.wait() == 0:
            self.meeting.sums += 1
        self.meeting.barrier.wait()
        tensor.copy_(sum(self.meeting.tensors))
        self.meeting.barrier.wait()

    def tell(self, value: Any) -> Any:
        self.meeting.tensors[self.rank] = value
        self.meeting.barrier.wait()
        said = self.meeting.tensors[0]
        self.meeting.barrier.wait()
        return said

    def wait(self) -> None:
        self.meeting.barrier.wait()


class Workers:
    """Two of them. `act(rank, step)` is called in each before its forward pass of a step."""

    def __init__(self, patch: pytest.MonkeyPatch, act: Callable[[int, int], None]) -> None:
        self.meeting = Meeting(2)
        self.stops = [threading.Event(), threading.Event()]
        self.here = threading.local()
        real_loss, real_load, lock = loop.layer_loss, loop.load_network, threading.Lock()

        @contextmanager
        def join_world(manifest: TrainManifest) -> Iterator[World]:
            yield Beside(self.here.rank, 2, CPU, self.meeting)

        def load_network(*arguments: Any) -> Any:
            with lock:  # diffusers changes torch itself while it loads
                return real_load(*arguments)

        def layer_loss(*arguments: Any, **options: Any) -> torch.Tensor:
            self.here.step += 1
            act(self.here.rank, self.here.step)
            return real_loss(*arguments, **options)

        patch.setattr(loop, "join_world", join_world)
        patch.setattr(loop, "load_network", load_network)
        patch.setattr(loop, "layer_loss", layer_loss)

    def train(self, manifest: TrainManifest) -> list[Any]:
        """What each worker returned or raised."""
        results: list[Any] = [None, None]

        def work(rank: int) -> None:
            self.here.rank, self.here.step = rank, 0
            try:
                results[rank] = loop.train(
                    manifest, manifest.out, log=lambda line: None, stop=self.stops[rank]
                )
            except ValueError as error:
                results[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def one_stage(folder: Path, **changes: Any) -> TrainManifest:
    manifest = make_manifest(
        folder, log_every=100, save_every=100, keep_last=100, tensorboard=False
    )
    base = manifest.stages[0].model_copy(update={"steps": 12})
    return manifest.model_copy(update={"stages": [base], **changes})


def steps_saved(manifest: TrainManifest) -> list[int]:
    return [int(path.name[-8:]) for path in checkpoints(Path(manifest.out), "base")]


@pytest.mark.parametrize(("late", "stops_at"), [(False, 3), (True, 4)])
def test_one_worker_told_to_stop_stops_all_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool, stops_at: int
) -> None:
    """However seldom they log. `late`, as on GPUs: read when the next step is on its way."""
    manifest = one_stage(tmp_path)
    monkeypatch.setattr(loop, "Signals", functools.partial(signals.Signals, late=late))

    def terminate(rank: int, step: int) -> None:
        if (rank, step) == (1, 3) and not checkpoints(tmp_path / "out", "base"):
            workers.stops[1].set()

    workers = Workers(monkeypatch, terminate)
    assert workers.train(manifest) == [False, False]
    assert steps_saved(manifest) == [stops_at]
    workers.stops[1].clear()
    assert workers.train(manifest) == [True, True]
    assert len(metrics.read(tmp_path / "out/metrics.csv")) == 12


@pytest.mark.parametrize(("late", "saved"), [(False, [4, 8, 12]), (True, [5, 10, 12])])
def test_checkpoints_by_the_clock_of_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool, saved: list[int]
) -> None:
    """A step a minute, and a checkpoint three minutes after the last: one each time, not two."""
    manifest = one_stage(tmp_path, save_minutes=3.0)
    monkeypatch.setattr(loop, "Signals", functools.partial(signals.Signals, late=late))
    workers = Workers(monkeypatch, lambda rank, step: None)

    def minutes() -> float:  # as many as sums of gradients, on rank 0; other clocks do not count
        return 60.0 * workers.meeting.sums if workers.here.rank == 0 else 0.0

    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=minutes))
    assert workers.train(manifest) == [True, True]
    assert steps_saved(manifest) == saved


@pytest.mark.parametrize("late", [False, True])
def test_all_workers_give_up_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    manifest = one_stage(tmp_path, max_skips=3)
    monkeypatch.setattr(loop, "Signals", functools.partial(signals.Signals, late=late))
    workers = Workers(monkeypatch, lambda rank, step: None)
    healthy = loop.layer_loss

    def poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        losses = healthy(*arguments, **options)
        return losses * (float("nan") if workers.here.step > 5 and workers.here.rank else 1.0)

    monkeypatch.setattr(loop, "layer_loss", poisoned)
    results = workers.train(manifest)
    assert all("3 steps in a row, up to step" in str(error) for error in results)
    rows = metrics.read(tmp_path / "out/metrics.csv")
    assert [row["skipped"] for row in rows] == [0] * 5 + ([1, 2, 3, 4] if late else [1, 2, 3])
    assert not (tmp_path / "out/export").exists()


@pytest.mark.parametrize("where", ["validation", "checkpoint", "export"])
def test_a_stop_that_comes_outside_a_step_is_heard_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Told twice, too; what goes on from there equals a run that nobody stopped."""
    held_out = {"latents": "video", "every": 3, "clips": 2, "timesteps": [500], "keep_best": True}
    whole = make_manifest(tmp_path, validation=held_out)
    assert loop.train(whole, whole.out, log=lambda line: None)
    module, name = {
        "validation": (loop.validation, "validate"),
        "checkpoint": (loop.checkpoint, "save"),
        "export": (loop, "export"),
    }[where]
    real, stop = getattr(module, name), threading.Event()

    def told(*arguments: Any, **options: Any) -> Any:
        stop.set()
        result = real(*arguments, **options)
        stop.set()
        return result

    monkeypatch.setattr(module, name, told)
    manifest = whole.model_copy(update={"out": str(tmp_path / "stopped")})
    assert not loop.train(manifest, manifest.out, log=lambda line: None, stop=stop)
    stopped_at = "motion-00000001" if where == "export" else "base-00000004"
    assert (tmp_path / "stopped/checkpoints" / stopped_at).is_dir()
    monkeypatch.setattr(module, name, real)
    assert loop.train(manifest, manifest.out, log=lambda line: None)
    assert same(weights(tmp_path / "stopped/export"), weights(tmp_path / "out/export"))
    curves = [metrics.read(tmp_path / run / "metrics.csv") for run in ("stopped", "out")]
    assert [row["loss"] for row in curves[0]] == [row["loss"] for row in curves[1]]


def test_the_loop_s_own_command_ends_with_the_status_of_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun, and whatever runs it, must not take a stopped run for one that is done."""
    manifest = one_stage(tmp_path)
    (tmp_path / "m.yaml").write_text(manifest.model_dump_json())
    monkeypatch.setattr("sys.argv", ["loop", str(tmp_path / "m.yaml")])
    for finished in (False, True):
        monkeypatch.setattr(loop, "train", lambda *args, finished=finished, **options: finished)
        if finished:
            loop.main()
        else:
            with pytest.raises(SystemExit, match="143"):
                loop.main()
