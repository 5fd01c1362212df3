"""What a step does not do: read from the device, compile a network for all shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.train_gpu import noise_of, random_batch
from layerflow.model.objective import layer_loss
from tests.support.trainer_kit import CHANNELS, make_manifest
from trainer import loop
from trainer.export import load_model
from trainer.runtime import prepare


class Reads(TorchDispatchMode):
    """Counts how often a number of a tensor is asked for, which makes a GPU's host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        self.count += function in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.nonzero.default,
        )
        return function(*args, **(kwargs or {}))


def test_a_step_that_logs_and_saves_nothing_reads_no_number_of_a_tensor(tmp_path: Path) -> None:
    """So a run of eight steps reads as many as one of four."""
    kit = make_manifest(tmp_path, log_every=99, save_every=99)
    counts = []
    for steps in (4, 8):
        base = kit.stages[0].model_copy(update={"steps": steps})
        out = str(tmp_path / f"{steps}")
        with Reads() as reads:
            assert loop.train(kit.model_copy(update={"stages": [base]}), out, log=lambda line: None)
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
def test_each_shape_has_a_compiled_block_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sizes of clips, each seen twice: three graphs, not a second one for all sizes."""
    from torch._dynamo.testing import CompileCounter

    counter, usual = CompileCounter(), torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **how: usual(module, backend=counter, **how)
    )
    kit = make_manifest(tmp_path, compile=True)
    transformer = prepare(load_model(kit.model, torch.device("cpu"))[0], kit)
    assert len(transformer.transformer_blocks) == 2, "blocks have one code, and share its graphs"
    for size in (2, 4, 6, 2, 4, 6):
        batch = random_batch(transformer, (1, 4, 2, CHANNELS, size, 2))
        layer_loss(transformer, noise_of(transformer), *batch.tensors(), layers=batch.layers)
    assert counter.frame_count == 3
