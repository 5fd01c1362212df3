"""The three stages on Wan, through the trainer as it is."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from layerflow.model import adapters
from layerflow.model.wan.from_base import make_scheduler
from layerflow.model.wan.presets import TINY, tiny_transformer
from manifests.train import TrainManifest
from tests.support.trainer_kit import (
    CHANNELS,
    TEXT_WIDTH,
    TOKENS,
    make_latents,
    make_manifest,
    weights,
)
from trainer.export import load_model
from trainer.loop import train
from trainer.planning.plan import make_plan


def wan_manifest(folder: Path, **changes: object) -> TrainManifest:
    """The kit's three stages over a small Wan."""
    model = folder / "model"
    if not model.exists():
        torch.manual_seed(0)
        size = {"height": 16, "width": 16, "num_frames": 2, "num_layers": 2, "ffn_dim": 32}
        text = {"text_width": TEXT_WIDTH, "num_text_tokens": TOKENS, "num_attention_heads": 1}
        network = tiny_transformer({**TINY, **size, **text}, CHANNELS)
        torch.nn.init.normal_(network.proj_out.weight, std=0.3)  # a zero start would hide mistakes
        network.save_pretrained(model / "transformer")
        make_scheduler("euler", 3.0, "logit-normal").save_pretrained(model / "scheduler")
        (model / "model_index.json").write_text('{"_class_name": "LayerFlowWanPipeline"}\n')
        make_latents(folder / "video", count=10)
        make_latents(folder / "stills", count=6, kind="image", frames=1, seed=1)
    return make_manifest(folder, **changes)


def test_three_stages_train_stop_and_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = wan_manifest(tmp_path, out=str(tmp_path / "whole"))
    assert train(whole, whole.out)
    parts = wan_manifest(tmp_path, out=str(tmp_path / "parts"))
    saved = 0

    class StopError(Exception):
        pass

    def interrupt(row: object) -> None:
        nonlocal saved
        saved += 1
        if saved in (1, 3):  # inside the base and the motion stage
            raise StopError

    for _ in range(2):
        try:
            train(parts, parts.out, report=interrupt)
        except StopError:
            continue
    assert train(parts, parts.out)
    first, second = (weights(Path(m.out) / "export") for m in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    start = weights(tmp_path / "model")
    assert not torch.equal(
        start["transformer/blocks.0.attn2.to_k.weight"],
        first["transformer/blocks.0.attn2.to_k.weight"],
    )
    said = json.loads((tmp_path / "whole" / "export" / "model_index.json").read_text())
    assert said["_class_name"] == ["layerflow_pipeline", "LayerFlowWanPipeline"]
    network = load_model(tmp_path / "whole" / "export", torch.device("cpu"))[0]
    assert adapters.adapter_names(network) == ["motion", "content"]


def test_a_plan_counts_the_blocks_of_wan(tmp_path: Path) -> None:
    plans = make_plan(wan_manifest(tmp_path))
    assert [set(plan.groups) >= {"blocks.1"} for plan in plans] == [True] * 3
    assert plans[2].trained == 4 * 2 * 2 * 32 * 2  # rank 2 of 8 layers of width 32 in one block
