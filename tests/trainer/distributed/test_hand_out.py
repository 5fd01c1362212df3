"""The network is read by one worker; the others get their parts of it, and nothing else."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from manifests.train import TrainManifest
from tests.support.trainer_kit import make_manifest, weights
from tests.support.training_runs import losses
from trainer import export, loop
from trainer.distributed.fsdp import Sharded

WORKERS = 2


def part(rank: int, port: int, manifest: TrainManifest, folder: str) -> None:
    """Train as one of two workers; to a file: parameters held in each stage, tensors gathered."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(WORKERS), LOCAL_RANK=str(rank))
    held: list[int] = []
    gathered: list[int] = []
    lay_out, tensors = loop.lay_out, Sharded.tensors

    def counted(transformer: Any, *arguments: Any, **options: Any) -> Any:
        if rank and transformer.first_only:  # nothing yet
            assert all(parameter.is_meta for parameter in transformer.parameters())
        made = lay_out(transformer, *arguments, **options)
        parts = [getattr(p, "to_local", lambda p=p: p)() for p in transformer.parameters()]
        held.append(sum(each.numel() for each in parts))
        return made

    def seen(trained: Sharded) -> Any:
        found = tensors(trained)
        gathered.append(len(found))
        return found

    def refused(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("only rank 0 reads the model")

    loop.lay_out, Sharded.tensors = counted, seen  # type: ignore[method-assign]
    if rank:
        export.load_model = export.load_file = refused  # type: ignore[attr-defined]
    assert loop.train(manifest, manifest.out, log=lambda line: None)
    Path(folder, f"{rank}.json").write_text(json.dumps({"held": held, "gathered": gathered}))


@pytest.mark.slow
@pytest.mark.parametrize("reshard", [True, False])
def test_only_one_worker_reads_and_gathers_the_network(tmp_path: Path, reshard: bool) -> None:
    """A sharded stage, then two that all workers have whole."""
    plain = make_manifest(tmp_path)
    assert loop.train(plain, plain.out, log=lambda line: None)
    stages = [plain.stages[0].model_copy(update={"parallel": "fsdp"}), *plain.stages[1:]]
    changes = {"stages": stages, "reshard_after_forward": reshard, "collective_minutes": 5}
    ours = plain.model_copy(update={"out": str(tmp_path / "ours"), **changes})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(part, (port, ours, str(tmp_path)), nprocs=WORKERS)
    assert losses(ours.out) == pytest.approx(losses(plain.out), rel=1e-4)
    found, wanted = (weights(Path(run.out) / "export") for run in (ours, plain))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORKERS))
    base, motion, content = first["held"]
    assert abs(second["held"][0] - base) < 0.1 * base  # halves, but for odd rows
    assert base + second["held"][0] < motion < content
    assert second["held"][1:] == [motion, content]
    assert first["gathered"][0] > 0 and not any(second["gathered"])
