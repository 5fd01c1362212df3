"""Layers as data: which a model sees of a row, and clips with different numbers of foregrounds."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layerflow.clip import LAYERS, PROMPTED
from layerflow.layer_set import layer_set, prompted_of
from layerflow.model.autoencoder import BlockDCTAutoencoder
from layerflow.model.cogvideox.from_base import make_scheduler
from layerflow.model.cogvideox.noise import VPrediction
from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
from layerflow.model.objective import layer_loss
from layerflow.model.presets import init_directory
from layerflow.official.convert import convert_checkpoint
from manifests.train_stage import Component
from tests.support import official_reference as reference
from tests.support.model_kit import small_transformer
from tests.support.trainer_kit import TEXT_WIDTH, make_latents, make_manifest, make_model, weights
from tests.support.trainer_kit import TOKENS as KIT_TOKENS
from trainer import metrics
from trainer.data import Batches, MixturePart, buckets_text, check_tasks, make_part, select_rows
from trainer.export import load_model
from trainer.layers import shared_layers, take_layers
from trainer.loop import train
from trainer.order import Order

RGB, RGBA, TWO = (layer_set(name) for name in ("rgb", "rgba", "rgbax2"))
STEPS = VPrediction(make_scheduler("ddim")).timesteps
CHANNELS, TOKENS, WIDTH = 27, 8, 32  # those of model_kit's network


class Rows:
    """Random latents of a set: `counts` foregrounds in each row."""

    def __init__(self, counts: Sequence[int], layers: str = "rgbax2", seed: int = 0) -> None:
        self.fingerprint = {"layers": layers}
        rng = np.random.default_rng(seed)
        self.counts, self.items = list(counts), []
        for count in counts:
            held = layer_set(layers).with_foregrounds(count)
            shape = (len(held), 2 * CHANNELS, 2, 2, 3)
            text = (len(prompted_of(held)), TOKENS, WIDTH)
            self.items.append(
                {
                    "layers": held,
                    "moments": rng.standard_normal(shape, np.float32)
                    - 30 * (np.arange(54) > 26)[:, None, None, None],
                    "prompt_embeds": rng.standard_normal(text, np.float32),
                }
            )

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> dict[str, Any]:
        return self.items[index]

    def column(self, name: str) -> list[Any]:
        own = {"foregrounds": self.counts, "latent_frames": [2] * len(self)}
        own |= {"latent_height": [2] * len(self), "latent_width": [3] * len(self)}
        return own[name]


def part_of(source: Rows, layers: str = "rgbax2", **filters: Any) -> MixturePart:
    component = Component.model_validate({"latents": "x", **filters})
    return make_part(component, source, select_rows(source, component), 2, layer_set(layers))


def batches_of(
    part: MixturePart, layers: str = "rgbax2", batch: int = 4, **options: Any
) -> Batches:
    own = layer_set(layers)
    chances = {name: options.pop(name, 0.0) for name in ("joint", "layer")}
    tasks = options.pop("tasks", {"decompose": 1.0, "generate": 1.0})
    order = Order(
        3, "x", batch, [len(part.rows)], [1.0], tasks, STEPS, prompts=len(own.prompted), **chances
    )
    return Batches([part], order, layers=own, **options)


def test_a_model_sees_the_layers_that_it_shares_with_the_row() -> None:
    assert shared_layers(RGB, RGBA, 1) == PROMPTED
    assert shared_layers(RGBA, TWO, 1) == LAYERS
    assert shared_layers(layer_set("rgbax3"), TWO, 2) == TWO.layers
    assert shared_layers(layer_set("rgba+effects"), RGBA, 1) == LAYERS


@pytest.mark.parametrize(
    ("model", "stored", "count", "message"),
    [(RGBA, RGB, 1, "no alpha"), (RGBA, TWO, 2, "2 foregrounds"), (RGB, TWO, 2, "at most 1")],
)
def test_what_a_model_has_no_place_for_is_refused(
    model: Any, stored: Any, count: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shared_layers(model, stored, count)


def test_rows_with_too_many_foregrounds_may_be_left_out() -> None:
    source = Rows([1, 2, 1, 2])
    with pytest.raises(ValueError, match="at most 1"):
        part_of(source, "rgba")
    part = part_of(source, "rgba", foregrounds=[1])
    assert list(part.rows) == [0, 2] and {shape.layers for shape in part.shapes} == {LAYERS}
    with pytest.raises(ValueError, match="none of its 4 rows"):
        part_of(source, "rgbax2", foregrounds=[3])


def test_an_rgb_model_takes_its_layers_out_of_rgba_latents() -> None:
    source = Rows([1], "rgba")
    item = take_layers(source.item(0), RGB.layers)
    assert np.array_equal(item["moments"], source.item(0)["moments"][[0, 2, 3]])
    assert np.array_equal(item["prompt_embeds"], source.item(0)["prompt_embeds"])
    (batch,) = batches_of(part_of(source, "rgb"), "rgb", batch=1).step(0)
    mean = source.item(0)["moments"][[0, 2, 3], :CHANNELS].swapaxes(1, 2)
    assert batch.layers == PROMPTED and batch.given.shape == (1, 3)
    assert np.allclose(batch.latents[0].numpy(), mean, atol=1e-4)  # deviations of exp(-15) on it


def test_prompts_and_their_dropout_are_those_of_the_layers_that_are_there() -> None:
    source = Rows([1])
    part = part_of(source)
    plain = batches_of(part, batch=32).step(0)[0].prompt_embeds
    assert plain.shape == (32, 3, TOKENS, WIDTH)
    dropping = batches_of(part, batch=32, layer=0.5)
    (batch,) = dropping.step(0)
    draws = sorted(dropping.order.step(0), key=lambda draw: draw.number)
    for draw, text in zip(draws, batch.prompt_embeds, strict=True):
        wanted = [not draw.drop[slot] for slot in (0, 2, 3)]  # of the set's four, not the second
        assert [bool(rows.any()) for rows in text] == wanted


def test_clips_of_one_and_two_foregrounds_share_a_step_in_passes_of_their_own() -> None:
    part = part_of(Rows([1, 2, 1, 2, 2, 1]))
    whole = batches_of(part, batch=6)
    step = whole.step(0)
    assert sorted(batch.latents.shape[1] for batch in step) == [4, 6]
    assert sum(batch.size for batch in step) == 6
    assert [batch.layers for batch in step] == [LAYERS, TWO.layers]
    assert buckets_text(dict.fromkeys(part.shapes, 3)).startswith("4 layers of 2x2x3")
    noises = {tuple(n.flatten()[:3].tolist()) for batch in step for n in batch.noise}
    for options in ({"accumulate": 3}, {"world": 2}, {"world": 3, "accumulate": 2}):
        dealt = [
            batch
            for rank in range(options.get("world", 1))
            for batch in batches_of(part, batch=6, rank=rank, **options).step(0)
        ]
        assert all(batch.latents.shape[1] == len(batch.layers) for batch in dealt)
        found = {tuple(n.flatten()[:3].tolist()) for batch in dealt for n in batch.noise}
        assert found == noises and sum(batch.size for batch in dealt) == 6


def test_a_mixed_step_has_the_gradient_of_its_samples_one_by_one() -> None:
    """Whatever the number of ranks and passes, and so after any resumption."""
    model, process = small_transformer(layers="rgbax2"), VPrediction(make_scheduler("ddim"))
    part = part_of(Rows([1, 2, 2, 1]))

    def gradient(found: list[Any]) -> torch.Tensor:
        model.zero_grad()
        for batch in found:
            layer_loss(model, process, *batch.tensors(), layers=batch.layers).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together = gradient(batches_of(part).step(2))
    ranks = [b for rank in (0, 1) for b in batches_of(part, rank=rank, world=2).step(2)]
    alone = [one for batch in ranks for one in batch.split(1)]
    assert len(alone) == 4
    torch.testing.assert_close(together, gradient(alone), rtol=1e-4, atol=1e-6)
    assert together.abs().max() > 0


def test_absent_layers_are_in_no_sequence_attention_or_loss() -> None:
    """A network of two foregrounds does with one what a network of one with its rows does."""
    torch.manual_seed(0)
    two, one = small_transformer(layers="rgbax2"), small_transformer(seed=1)
    rows = [TWO.layers.index(layer) for layer in LAYERS]
    slots = [TWO.prompted.index(layer) for layer in PROMPTED]
    state = {
        name: tensor[slots if name.endswith("text") else rows]
        if name.startswith("layer_embedding.")
        else tensor
        for name, tensor in two.state_dict().items()
    }
    one.load_state_dict(state)
    (batch,) = batches_of(part_of(Rows([1, 1, 1, 1]))).step(0)
    process = VPrediction(make_scheduler("ddim"))
    seen = layer_loss(two, process, *batch.tensors(), layers=batch.layers)
    torch.testing.assert_close(seen, layer_loss(one, process, *batch.tensors()))
    seen.sum().backward()
    absent = [row for row in range(6) if row not in rows]
    assert not two.layer_embedding.video.grad[absent].any()
    assert two.layer_embedding.video.grad[rows].abs().sum(1).min() > 0


def test_a_task_that_leaves_nothing_to_generate_is_refused() -> None:
    one, both = part_of(Rows([1])), part_of(Rows([2]))
    task = "foreground+alpha+background+blended"
    check_tasks([both], [task], TWO)
    with pytest.raises(ValueError, match="nothing is left to generate"):
        check_tasks([one, both], [task], TWO)
    with pytest.raises(ValueError, match="unknown task"):
        check_tasks([one], ["foreground.2"], RGBA)


def test_layers_that_a_clip_lacks_drop_out_of_its_task() -> None:
    part = part_of(Rows([1, 2]))
    tasks = {"foreground.2+alpha.2+background": 1.0}
    found = {b.layers: b.given.tolist() for b in batches_of(part, batch=2, tasks=tasks).step(0)}
    assert found[LAYERS] == [[False, False, True, False]]
    assert found[TWO.layers] == [[False, False, True, True, True, False]]


def test_three_stages_of_an_rgb_model_train_on_rgba_latents_and_it_samples(tmp_path: Path) -> None:
    make_model(tmp_path / "model", of="rgb")
    make_latents(tmp_path / "video", count=10)
    make_latents(tmp_path / "stills", count=6, kind="image", frames=1, seed=1)
    held_out = {"latents": "video", "every": 5, "clips": 2, "tasks": ["generate", "fg2bg"]}
    said = make_manifest(tmp_path, validation={**held_out, "samples": 1, "sample_steps": 1})
    assert train(said, said.out, log=lambda line: None)
    shown = json.loads((Path(said.out) / "samples/00000005/metrics.json").read_text())
    assert "iou" not in shown["tasks"]["fg2bg"] and shown["tasks"]["fg2bg"]
    before, after = weights(tmp_path / "model"), weights(Path(said.out) / "export")
    name = "transformer/layer_embedding.video"
    assert after[name].shape == before[name].shape == (3, 32)
    assert not torch.equal(after[name], before[name])
    assert {key.split("/")[0] for key in after} == {"transformer", "motion", "content"}
    pipe = open_parts_of(Path(said.out) / "export")
    text = torch.zeros(1, 3 * KIT_TOKENS, TEXT_WIDTH)
    made = pipe(prompt_embeds=text, num_inference_steps=2, output_type="np", guidance_scale=1.0)
    assert made.alpha is None and made.foreground.shape == (1, 2, 16, 16, 3)
    assert np.isfinite(made.blended).all()


def two_foregrounds(folder: Path, out: str, **changes: Any) -> Any:
    """A run on clips of one and two foregrounds, the base stage and a motion stage."""
    if not (folder / "model").exists():
        make_model(folder / "model", of="rgbax2")
        make_latents(folder / "video", count=10, layers="rgbax2")
        make_latents(folder / "stills", count=6, kind="image", frames=1, seed=1)
    held_out = {"latents": "video", "every": 4, "clips": 10, "tasks": ["decompose"]}
    held_out |= {"samples": 2, "sample_steps": 1}
    kit = make_manifest(folder, micro_batch=2, validation=held_out)
    stages = [kit.stages[0].model_copy(update={"steps": 4}), kit.stages[2]]
    said = {"stages": stages, "out": str(folder / out), **changes}
    return kit.model_copy(update=said)


def test_clips_of_one_and_two_foregrounds_train_and_resume_exactly(tmp_path: Path) -> None:
    whole = two_foregrounds(tmp_path, "whole")
    said: list[str] = []
    assert train(whole, whole.out, log=said.append)
    assert any("4 layers of 2x2x2 (5 clips), 6 layers of 2x2x2 (5 clips)" in line for line in said)
    broken = two_foregrounds(tmp_path, "broken", save_every=1)
    stop = threading.Event()
    ended = train(broken, broken.out, log=said.append, stop=stop, report=lambda row: stop.set())
    assert not ended and train(broken, broken.out, log=said.append)
    assert any("goes on after step" in line for line in said)
    shown = json.loads((tmp_path / "whole/samples/00000004/metrics.json").read_text())
    assert {"iou_foreground", "iou_foreground.2", "order"} <= shown["tasks"]["decompose"].keys()
    ends = [weights(Path(run.out) / "export") for run in (whole, broken)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_an_imported_rgb_checkpoint_goes_on_training(tmp_path: Path) -> None:
    """Its content adapter, on clips of this toolkit: it changes, and nothing else does."""
    size = (reference.HEIGHT, reference.WIDTH)
    file = reference.checkpoint(tmp_path / "in", "gen_rgb")
    official = convert_checkpoint(file, tmp_path / "official", task="gen_rgb", latent_size=size)
    model = init_directory(tmp_path / "model", "cogvideox-2b", official, dtype="float32")
    text = (226, reference.TEXT)
    make_latents(tmp_path / "video", count=4, frames=4, size=4, channels=16, text=text)
    stage = {
        "name": "content",
        "steps": 3,
        "lr": 1e-2,
        "trains": {"lora": "content", "rank": reference.CONTENT, "blocks": [1]},
        "mixture": [{"latents": "video"}],
        "tasks": {"generate": 1.0, "decompose": 1.0},
    }
    said = make_manifest(tmp_path, stages=[stage], batch=2)
    assert train(said, said.out, log=lambda line: None)
    before, after = weights(model), weights(Path(said.out) / "export")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("content/") for name in changed)
    losses = [row["loss"] for row in metrics.read(Path(said.out) / "metrics.csv")]
    assert len(losses) == 3 and np.isfinite(losses).all()


def open_parts_of(folder: Path) -> Any:
    network, scheduler = load_model(folder, torch.device("cpu"))
    vae = BlockDCTAutoencoder.from_pretrained(folder / "vae")
    pipe = LayerFlowPipeline(None, None, vae, network.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe
