"""Checkpoints written behind the steps: of the moment, complete or absent, in the way of nobody."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from manifests.train import TrainManifest
from tests.support import ROOT
from tests.support.trainer_kit import make_manifest, same, weights
from tests.support.training_runs import losses, spawn
from trainer import checkpoint, loop
from trainer.checkpoint import STATE, checkpoints

WAIT = 60.0


def run(manifest: TrainManifest) -> None:
    assert loop.train(manifest, manifest.out, log=lambda line: None)


def manifest_of(folder: Path, name: str, **changes: Any) -> TrainManifest:
    """Six steps of the base stage with a checkpoint after each second one."""
    kit = make_manifest(folder, save_every=2, keep_last=9)
    base = kit.stages[0].model_copy(update={"steps": 6})
    update = {"stages": [base], "out": str(folder / name), **changes}
    return kit.model_copy(update=update)


@pytest.fixture
def in_line(tmp_path: Path) -> Iterator[TrainManifest]:
    manifest = manifest_of(tmp_path, "in_line")
    run(manifest)
    yield manifest


def test_steps_go_on_while_a_checkpoint_is_written(
    in_line: TrainManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write ends when the step after the next has begun; what it has is of its step."""
    two_steps_on = threading.Event()
    waited: list[bool] = []
    steps = iter(range(1, 100))
    real_save, real_loss = checkpoint.save_file, loop.layer_loss

    def slow(tensors: Any, path: Any) -> None:
        waited.append(two_steps_on.wait(WAIT))
        real_save(tensors, path)

    def loss(*arguments: Any, **options: Any) -> torch.Tensor:
        if next(steps) == 4:
            assert checkpoints(tmp_path / "behind", "base") == []
            two_steps_on.set()
        return real_loss(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    monkeypatch.setattr(loop, "layer_loss", loss)
    behind = manifest_of(tmp_path, "behind", async_save=True)
    run(behind)
    monkeypatch.undo()
    assert waited[0] is True
    assert losses(behind.out) == losses(in_line.out)
    ours = checkpoints(Path(behind.out), "base")
    theirs = checkpoints(Path(in_line.out), "base")
    assert [path.name for path in ours] == [path.name for path in theirs] and len(ours) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert same(load_file(one / STATE), load_file(other / STATE))
        assert (one / "position.json").read_text() == (other / "position.json").read_text()


def test_a_full_disk_behind_the_steps_ends_the_run_and_leaves_what_was_there(
    in_line: TrainManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = checkpoint.save_file, iter(range(1, 100))

    def full(tensors: Any, path: Any) -> None:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    behind = manifest_of(tmp_path, "behind", async_save=True)
    with pytest.raises(OSError, match="No space left"):
        run(behind)
    monkeypatch.undo()
    folder = tmp_path / "behind/checkpoints"
    assert [path.name for path in folder.iterdir()] == ["base-00000002"]
    run(behind)
    assert same(weights(tmp_path / "behind/export"), weights(tmp_path / "in_line/export"))


KILLED = """
import os, signal, sys, threading
from manifests.train import load
from trainer import checkpoint, loop

manifest = load(sys.argv[1])
save, loss, writing = checkpoint.save_file, loop.layer_loss, threading.Event()
calls = {"save": 0, "loss": 0}

def half(tensors, path):
    calls["save"] += 1
    if calls["save"] == 2:
        path.write_bytes(b"half")
        writing.set()
        threading.Event().wait()
    save(tensors, path)

def kill(*arguments, **options):
    calls["loss"] += 1
    if calls["loss"] == 6:  # the checkpoint of step 4 is being written
        assert writing.wait(60)
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments, **options)

checkpoint.save_file, loop.layer_loss = half, kill
loop.train(manifest, manifest.out)
"""


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_it_goes_on_from_the_one_before(
    in_line: TrainManifest, tmp_path: Path
) -> None:
    behind = manifest_of(tmp_path, "behind", async_save=True)
    path = tmp_path / "manifest.json"
    path.write_text(behind.model_dump_json())
    command = [sys.executable, "-c", KILLED, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == -9, done.stderr[-2000:]
    left = {path.name for path in (tmp_path / "behind/checkpoints").iterdir()}
    assert left == {"base-00000002", ".base-00000004.tmp"}
    said: list[str] = []
    assert loop.train(behind, behind.out, log=said.append)
    assert any("goes on after step 2" in line for line in said)
    assert losses(behind.out) == losses(in_line.out)
    assert same(weights(tmp_path / "behind/export"), weights(tmp_path / "in_line/export"))


def sharded(folder: Path, name: str, **changes: Any) -> TrainManifest:
    manifest = manifest_of(folder, name, **changes)
    base = manifest.stages[0].model_copy(update={"parallel": "fsdp"})
    return manifest.model_copy(update={"stages": [base]})


def test_shards_are_written_behind_the_steps_too(tmp_path: Path) -> None:
    in_line, behind = sharded(tmp_path, "a"), sharded(tmp_path, "b", async_save=True)
    for manifest in (in_line, behind):
        run(manifest)
    assert losses(behind.out) == losses(in_line.out)
    ours, theirs = (checkpoints(Path(m.out), "base") for m in (behind, in_line))
    assert len(ours) == 3
    for one, other in zip(ours, theirs, strict=True):
        parts = sorted(path.name for path in one.glob("*.safetensors"))
        assert parts == sorted(path.name for path in other.glob("*.safetensors")) != []
        for part in parts:
            assert same(load_file(one / part), load_file(other / part))


@pytest.mark.slow
def test_two_workers_write_their_shards_behind_the_steps_and_one_goes_on(tmp_path: Path) -> None:
    in_line, behind = sharded(tmp_path, "a"), sharded(tmp_path, "b", async_save=True)
    spawn(in_line, 2)
    spawn(behind, 2, die_at=6)
    assert checkpoints(Path(behind.out), "base")
    spawn(behind, 1)
    assert losses(behind.out) == pytest.approx(losses(in_line.out), rel=1e-5)
