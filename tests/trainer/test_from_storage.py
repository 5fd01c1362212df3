"""Training from an object store alone: latents by range, a run that goes on on a new machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from layerflow.corpus.remote import cache
from layerflow.files import OWNER
from manifests.train import TrainManifest
from tests.support.trainer_kit import Killed, kill_at, make_manifest, same, weights
from trainer import loop
from trainer.distributed.processes import World
from trainer.loop import make_batches
from trainer.workplace import workplace

pytest.importorskip("moto")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    from tests.support.s3 import s3_bucket

    with s3_bucket("training") as system:
        yield system


def fresh_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A machine of which only the cache's place is known, and that is empty."""
    monkeypatch.setenv(cache.FOLDER, str(folder / "cache"))
    cache.shared_cache.cache_clear()


def train(manifest: TrainManifest, **more: Any) -> None:
    assert loop.train(manifest, manifest.out, log=lambda line: None, **more)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["upload", "out"])
def test_a_run_from_storage_goes_on_on_a_new_machine_to_the_weights_of_a_local_one(
    where: str, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a batch each, read ahead; killed in the second stage, and all that lay here removed:
    the run and the cache. With `out` there nothing is here in the first place."""
    monkeypatch.setattr("layerflow.corpus.latents.BATCH_BYTES", 1)
    local = make_manifest(tmp_path)
    train(local)
    for name in ("video", "stills"):
        bucket.put(str(tmp_path / name), f"s3://training/{name}", recursive=True)
        shutil.rmtree(tmp_path / name)
    run = f"s3://training/run-{where}"
    changes = {
        "latents": {name: f"s3://training/{name}" for name in ("video", "stills")},
        "save_every": 2,
        "prefetch": 2,
    }

    def machine(name: str) -> TrainManifest:
        places = {"out": str(tmp_path / name / "out"), where: run}
        fresh_machine(monkeypatch, tmp_path / name)
        return local.model_copy(update=changes | places)

    with pytest.raises(Killed):
        train(machine("first"), report=kill_at(7))
    assert any((tmp_path / "first/cache").rglob("*"))
    shutil.rmtree(tmp_path / "first")
    said: list[str] = []
    second = machine("second")
    assert loop.train(second, second.out, log=said.append)
    assert any(line.startswith(f"goes on from {run}: brought") for line in said)
    assert "base: done before, 5 steps" in said
    bucket.get(f"{run}/export", str(tmp_path / "export"), recursive=True)
    assert same(weights(tmp_path / "export"), weights(Path(local.out) / "export"))
    assert bucket.exists(f"{run}/export/_COMPLETE")
    assert where == "upload" or not (tmp_path / "second/out").exists()


def test_what_a_run_in_a_bucket_cannot_do_is_refused_first(tmp_path: Path) -> None:
    there = make_manifest(tmp_path, out="s3://training/refused")
    with pytest.raises(ValueError, match="is where the run is copied already"):
        train(there.model_copy(update={"upload": "s3://training/other"}))
    stages = [there.stages[0].model_copy(update={"parallel": "fsdp"}), *there.stages[1:]]
    with pytest.raises(ValueError, match=r"'base'.*a folder that all workers see"):
        train(there.model_copy(update={"stages": stages}))


def test_folders_of_runs_that_were_killed_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    alone = World(0, 1, torch.device("cpu"))
    folders = [tmp_path / f"layerflow-run-{name}" for name in ("gone", "mine", "unmarked")]
    for folder in folders:
        folder.mkdir()
    for folder, pid in ((folders[0], 2**22 + 1), (folders[1], os.getpid())):
        mark = {"host": socket.gethostname(), "pid": pid}
        (folder / OWNER).write_text(json.dumps(mark))
    manifest = make_manifest(tmp_path)
    with workplace(manifest, "s3://training/run", alone) as place:
        assert [folder.exists() for folder in folders] == [False, True, True]
        assert place.out.is_dir() and place.upload == "s3://training/run"
        assert place.manifest.out == str(place.out)
    assert not place.out.exists() and folders[1].exists()


WORLD = World(1, 2, torch.device("cpu"))


def test_each_rank_has_the_batches_of_local_latents(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = make_manifest(tmp_path)
    for name in ("video", "stills"):
        bucket.put(str(tmp_path / name), f"s3://training/ranks/{name}", recursive=True)
    latents = {name: f"s3://training/ranks/{name}" for name in ("video", "stills")}
    afar = local.model_copy(update={"latents": latents})
    fresh_machine(monkeypatch, tmp_path)
    stage = local.stages[2]
    made = []
    for manifest in (local, afar):
        run: Any = type("Run", (), {"manifest": manifest, "world": WORLD, "process": _Times()})
        stream = make_batches(run, stage).stream(0, 4, prefetch=2 if manifest is afar else 0)
        made.append([batch for step in stream for batch in step])
    assert len(made[0]) == len(made[1])
    for here, there in zip(*made, strict=True):
        assert all(map(torch.equal, here.tensors(), there.tensors()))


class _Times:
    """As many of a noise process as an order needs."""

    def __getattr__(self, name: str) -> Any:
        return lambda strata, *_: strata


def test_reading_ahead_covers_this_ranks_rows_and_no_others(tmp_path: Path) -> None:
    local = make_manifest(tmp_path)
    run: Any = type("Run", (), {"manifest": local, "world": WORLD, "process": _Times()})
    batches = make_batches(run, local.stages[0])
    wished: list[int] = []
    used: list[int] = []
    source = batches.parts[0].source
    item = source.item

    def seen(row: int) -> Any:
        used.append(row)
        return item(row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "read_ahead", wished.extend, raising=False)
        patch.setattr(source, "item", seen)
        batches.wish(3)
        batches.step(3)
    assert sorted(wished) == sorted(used) and len(used) == 2
