"""`mask: known`: what a clip does not know is left out of the loss, however the batch is split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layerflow.clip import LAYERS
from layerflow.corpus.latents import Latents
from layerflow.model.base import base_of
from manifests.train import TrainManifest, parse
from tests.support.trainer_kit import make_latents, make_manifest, same, weights
from tests.support.training_runs import losses, spawn
from trainer import loop
from trainer.data import Batches, known_of, open_parts
from trainer.export import load_model
from trainer.layers import take_layers
from trainer.order import Order

STEPS = 4


def masked(folder: Path, name: str = "out", mask: str | None = "known", **changes: Any) -> Any:
    """The base stage alone, on clips of which a third is not known, and one nothing at all."""
    if not (folder / "partly").exists():
        make_latents(folder / "partly", count=5, unknown=0.3, seed=3)
    kit = make_manifest(folder)
    stage = kit.stages[0].model_dump(mode="json") | {"steps": STEPS, "mask": mask}
    stage["mixture"] = [{"latents": "partly", "weight": 3}, {"latents": "video"}]
    document = kit.model_dump(mode="json") | {
        "out": str(folder / name),
        "latents": {"partly": str(folder / "partly"), "video": str(folder / "video")},
        "stages": [stage],
        "log_every": 1,
        **changes,
    }
    return parse(document)


def batches(manifest: TrainManifest, **how: Any) -> Batches:
    stage = manifest.stages[0]
    parts = open_parts(manifest, stage)
    model, scheduler = load_model(manifest.model, torch.device("cpu"))
    timesteps = base_of(model).noise(scheduler).timesteps
    order = Order(
        seed=manifest.seed,
        stage=stage.name,
        batch=manifest.batch,
        sizes=[len(part.rows) for part in parts],
        weights=[component.weight for component in stage.mixture],
        tasks=stage.tasks,
        joint=manifest.dropout.joint,
        layer=manifest.dropout.layer,
        timesteps=timesteps,
    )
    return Batches(parts, order, masked=True, **how)


def by_hand(manifest: TrainManifest, step: int) -> list[float]:
    """Each sample's mean squared error over known elements of generated layers, one at a time."""
    model, scheduler = load_model(manifest.model, torch.device("cpu"))
    process = base_of(model).noise(scheduler)
    found = []
    (batch,) = batches(manifest).step(step)
    for one in batch.split(1):
        assert one.known is not None
        noisy = process.add_noise(one.latents, one.noise, one.timesteps)
        keep = one.given[:, :, None, None, None, None]
        with torch.no_grad():
            predicted = model(
                torch.where(keep, one.latents, noisy).flatten(1, 2),
                one.prompt_embeds.flatten(1, 2),
                one.timesteps,
                given=one.given,
                motion_gate=one.motion_gate,
                return_dict=False,
            )[0].view_as(one.latents)
        target = process.target(one.latents, one.noise, one.timesteps)
        error = (predicted - target).numpy().astype(np.float64)[0]
        squares = [
            float((error[layer, frame, :, y, x] ** 2).sum())
            for layer in range(len(LAYERS))
            for frame, y, x in one.known[0, layer].nonzero().tolist()
            if not one.given[0, layer]
        ]
        found.append(sum(squares) / (error.shape[2] * len(squares)) if squares else 0.0)
    return found


def test_the_loss_of_a_step_is_that_of_a_hand_computation(tmp_path: Path) -> None:
    manifest = masked(tmp_path)
    assert loop.train(manifest, manifest.out)
    samples = by_hand(manifest, 0)
    assert losses(manifest.out)[0] == pytest.approx(np.mean(samples), rel=1e-5)
    plain = masked(tmp_path, "plain", mask=None)
    assert loop.train(plain, plain.out)
    assert losses(plain.out)[0] != pytest.approx(losses(manifest.out)[0], rel=1e-2)
    seen = [float(loss) for step in range(8) for loss in by_hand(manifest, step)]
    assert 0.0 in seen  # a clip of which nothing is known


@pytest.mark.parametrize("split", [(1, 2), (2, 1), (2, 2)])
def test_ranks_and_passes_see_the_masks_of_their_own_samples(
    tmp_path: Path, split: tuple[int, int]
) -> None:
    manifest, (world, accumulate) = masked(tmp_path), split
    (whole,) = batches(manifest).step(1)
    parts = [
        batch
        for rank in range(world)
        for batch in batches(manifest, rank=rank, world=world, accumulate=accumulate).step(1)
    ]
    assert sum(part.size for part in parts) == whole.size == manifest.batch
    known = {one.noise.numpy().tobytes(): one.known for one in whole.split(1)}
    for part in parts:
        for one in part.split(1):
            assert torch.equal(one.known, known[one.noise.numpy().tobytes()])


def test_accumulation_and_a_stop_change_nothing(tmp_path: Path) -> None:
    whole = masked(tmp_path, "whole")
    assert loop.train(whole, whole.out)
    split = masked(tmp_path, "split", accumulate=4)
    assert loop.train(split, split.out)
    assert losses(split.out) == pytest.approx(losses(whole.out), rel=1e-5)

    class Stop(loop.threading.Event):
        count = 0

        def is_set(self) -> bool:
            self.count += 1
            return self.count == 2

    broken = masked(tmp_path, "broken", save_every=1)
    assert not loop.train(broken, broken.out, stop=Stop())
    assert 0 < len(losses(broken.out)) < STEPS
    assert loop.train(broken, broken.out)
    assert losses(broken.out) == losses(whole.out)
    assert same(weights(Path(broken.out) / "export"), weights(Path(whole.out) / "export"))


def test_stills_and_frozen_frames_keep_their_own_mask(tmp_path: Path) -> None:
    stills = make_latents(tmp_path / "pictures", count=3, kind="image", frames=1, unknown=0.5)
    manifest = masked(tmp_path)
    stage = manifest.stages[0].model_dump(mode="json")
    stage["mixture"] = [
        {"latents": str(stills), "frames": 3},
        {"latents": "partly", "freeze": True},
    ]
    parts = open_parts(
        manifest, parse(manifest.model_dump(mode="json") | {"stages": [stage]}).stages[0]
    )
    own = Latents.open(stills).item(1)["known"]
    shown = parts[0].show(1, own, 0.9)
    assert shown.shape == (4, 3, 2, 2) and (shown == own).all() and not own.all()
    moving = Latents.open(tmp_path / "partly").item(1)["known"]
    frozen = parts[1].show(1, moving, 0.6)
    assert frozen.shape == moving.shape and (frozen == moving[:, 1:2]).all()


def test_a_model_of_fewer_layers_sees_the_masks_of_its_own(tmp_path: Path) -> None:
    make_latents(tmp_path / "partly", count=2, unknown=0.5)
    item = Latents.open(tmp_path / "partly").item(1)
    fewer = take_layers(item, ("foreground", "background", "blended"))
    assert np.array_equal(fewer["known"], item["known"][[0, 2, 3]])
    assert known_of(take_layers({**item, "known": None}, fewer["layers"])).all()


def test_a_manifest_without_a_mask_says_nothing_of_it(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    assert "mask" not in manifest.stages[0].model_dump(mode="json")
    with pytest.raises(ValueError, match="mask"):
        masked(tmp_path, mask="seen")


@pytest.mark.slow
def test_two_processes_killed_and_continued_end_as_one_that_was_not(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"micro_batch": 2, "save_every": 1}
    alone = masked(tmp_path, "alone", **shared)
    spawn(alone, 1)
    pair = masked(tmp_path, "pair", **shared)
    spawn(pair, 2, die_at=3)
    spawn(pair, 2)
    assert losses(pair.out) == losses(alone.out)
    assert same(weights(Path(pair.out) / "export"), weights(Path(alone.out) / "export"))
