"""The loop: equal to a plain one, resumed exactly, split exactly, gated exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from layerflow.corpus.latents import Latents
from layerflow.model import adapters
from layerflow.model.base import base_of
from layerflow.model.layers import given_layers
from layerflow.seeds import keyed
from manifests.train import TrainManifest
from tests.support import ROOT
from tests.support.trainer_kit import Killed, kill_at, make_manifest, same, weights
from trainer import loop, metrics
from trainer.checkpoint import checkpoints
from trainer.data import Batches, open_parts
from trainer.export import load_model
from trainer.order import Order
from trainer.runtime import attention_kernel
from trainer.stages import Trained

CPU = torch.device("cpu")
TOLERANCE = 1e-6


def silent(line: str) -> None:
    pass


def run(manifest: TrainManifest, **options: Any) -> bool:
    return loop.train(manifest, manifest.out, log=silent, **options)


def change(manifest: TrainManifest, **changes: Any) -> TrainManifest:
    return manifest.model_copy(update=changes)


def losses(manifest: TrainManifest) -> list[float]:
    return [row["loss"] for row in metrics.read(Path(manifest.out) / "metrics.csv")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> TrainManifest:
    manifest = make_manifest(tmp_path_factory.mktemp("unbroken"), keep_exports=True)
    assert run(manifest)
    return manifest


# ---- resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 5, 6, 9, 11])
def test_a_killed_run_goes_on_to_equal_an_unbroken_one(
    unbroken: TrainManifest, tmp_path: Path, step: int
) -> None:
    """Killed inside an epoch (2 of 2.5 batches), at and beside stage borders, in each stage."""
    manifest = change(unbroken, out=str(tmp_path / "out"), save_every=2, prefetch=2)
    with pytest.raises(Killed):
        run(manifest, report=kill_at(step))
    assert len(losses(manifest)) < 13
    assert run(manifest)
    assert same(weights(tmp_path / "out/export"), weights(Path(unbroken.out) / "export"))
    assert losses(manifest) == losses(unbroken)


def test_sigkill_in_the_middle_of_a_step(unbroken: TrainManifest, tmp_path: Path) -> None:
    manifest = change(unbroken, out=str(tmp_path / "out"), save_every=1)
    path = tmp_path / "manifest.yaml"
    path.write_text(manifest.model_dump_json())  # JSON is YAML
    command = [sys.executable, "-m", "trainer.loop", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("motion 2/"))
        process.kill()
    assert 7 <= len(losses(manifest)) < 13
    torch.set_num_threads(1)
    assert run(manifest)
    assert same(weights(tmp_path / "out/export"), weights(Path(unbroken.out) / "export"))


def test_sigterm_saves_and_ends(unbroken: TrainManifest, tmp_path: Path) -> None:
    manifest = change(unbroken, out=str(tmp_path / "out"), save_every=100, log_every=1)

    def terminate(line: str) -> None:
        if line.startswith("base 2/"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert not loop.train(manifest, manifest.out, log=terminate)
    assert [path.name for path in checkpoints(tmp_path / "out", "base")] == ["base-00000003"]
    assert run(manifest)
    assert same(weights(tmp_path / "out/export"), weights(Path(unbroken.out) / "export"))


def test_a_finished_run_does_nothing_again(unbroken: TrainManifest) -> None:
    before = (Path(unbroken.out) / "metrics.csv").read_bytes()
    lines: list[str] = []
    assert loop.train(unbroken, unbroken.out, log=lines.append)
    assert all("done before" in line for line in lines) and len(lines) == 3
    assert (Path(unbroken.out) / "metrics.csv").read_bytes() == before


def test_more_steps_in_the_last_stage_go_on_from_its_end(tmp_path: Path) -> None:
    longer = make_manifest(tmp_path)
    stages = list(longer.stages)
    stages[2] = stages[2].model_copy(update={"steps": 3})
    shorter = change(longer, stages=stages)
    assert run(shorter) and run(longer)
    assert len(losses(longer)) == 13
    at_once = change(longer, out=str(tmp_path / "at_once"))
    assert run(at_once)
    assert same(weights(tmp_path / "out/export"), weights(tmp_path / "at_once/export"))


def test_only_one_stage(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    with pytest.raises(ValueError, match="needs stage 'base'"):
        run(manifest, only="motion")
    with pytest.raises(ValueError, match="no stage 'nope'"):
        run(manifest, only="nope")
    said: list[str] = []
    assert loop.train(manifest, manifest.out, only="base", log=said.append)
    assert said[0].startswith("base: trains 0.0") and said[0].endswith("shapes 2x2x2 (10 clips)")
    assert len(losses(manifest)) == 5
    assert run(manifest, only="motion") and len(losses(manifest)) == 9


# ---- what a step is ---------------------------------------------------------------------------


def test_ten_steps_equal_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses to 1e-6 of themselves, gradients to 1e-6 of the largest element of each step's."""
    manifest = make_manifest(tmp_path, save_every=100, optimizer={"weight_decay": 0.1})
    kept: list[dict[str, torch.Tensor]] = []
    real = Trained.reduce

    def remember(trained: Trained, world: Any) -> None:
        real(trained, world)
        kept.append({n: g.clone() for n, g in trained.views(trained.grads).items()})

    monkeypatch.setattr(Trained, "reduce", remember)
    stage = manifest.stages[0].model_copy(update={"steps": 10, "ema": None})
    manifest = change(manifest, stages=[stage])
    assert run(manifest)
    plain_losses, plain = plain_loop(manifest)
    rows = metrics.read(tmp_path / "out/metrics.csv")
    assert [row["loss"] for row in rows] == pytest.approx([x for x, _ in plain_losses], rel=1e-6)
    for ours, (_, theirs) in zip(kept, plain_losses, strict=True):
        assert ours.keys() == theirs.keys()
        largest = max(g.abs().max() for g in theirs.values())
        wrong = max((ours[name] - theirs[name]).abs().max() for name in theirs)
        assert wrong < TOLERANCE * largest
    trained, _ = load_model(tmp_path / "out/export", CPU)
    for name, tensor in trained.state_dict().items():
        # Adam turns rounding in near-zero gradients into steps; a real difference would be 2e-3
        torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-4)


def plain_loop(
    manifest: TrainManifest,
) -> tuple[list[tuple[float, dict[str, torch.Tensor]]], dict[str, torch.Tensor]]:
    """The base stage written out, one sample at a time; shares only the model and the draws."""
    stage = manifest.stages[0]
    model, scheduler = load_model(manifest.model, CPU)
    model.train()
    source = Latents.open(manifest.latents["video"])
    order = Order(
        seed=manifest.seed,
        stage=stage.name,
        batch=manifest.batch,
        sizes=[len(source)],
        weights=[1.0],
        tasks=stage.tasks,
        joint=manifest.dropout.joint,
        layer=manifest.dropout.layer,
        timesteps=base_of(model).noise(scheduler).timesteps,
    )
    named = dict(model.named_parameters())
    shrunk = [n for n, p in named.items() if p.ndim > 1 and not n.startswith("layer_embedding")]
    groups = [
        {"params": [named[n] for n in shrunk], "weight_decay": 0.1},
        {"params": [p for n, p in named.items() if n not in shrunk], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    seen = []
    for step in range(stage.steps):
        lr = stage.lr * (step + 1) / 2 if step < 2 else stage.lr * (1 - (step - 2) / 8) ** 0.7
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        total = 0.0
        for draw in order.step(step):
            item = source.item(draw.row)
            rng = keyed(manifest.seed, stage.name, "noise", draw.number)
            moments = torch.from_numpy(item["moments"]).transpose(1, 2)  # [4, f, 2C, h, w]
            mean, logvar = moments.chunk(2, dim=2)
            shape = mean.transpose(1, 2).shape
            spread = torch.from_numpy(rng.standard_normal(shape, np.float32)).transpose(1, 2)
            clean = mean + (logvar / 2).exp() * spread
            noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32))
            given = [
                name in given_layers(draw.task)
                for name in ("foreground", "alpha", "background", "blended")
            ]
            abar = scheduler.alphas_cumprod[draw.timestep]
            noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
            target = abar.sqrt() * noise - (1 - abar).sqrt() * clean
            for layer, is_given in enumerate(given):
                if is_given:
                    noisy[layer] = clean[layer]
            text = torch.from_numpy(item["prompt_embeds"]).clone()
            for slot, dropped in enumerate(draw.drop):
                if dropped:
                    text[slot] = 0
            output = model(
                noisy.flatten(0, 1)[None],
                text.flatten(0, 1)[None],
                torch.tensor([draw.timestep]),
                given=torch.tensor([given]),
            ).sample[0]
            wrong = (output.unflatten(0, (4, -1)) - target) ** 2
            loss = torch.stack([wrong[i].mean() for i in range(4) if not given[i]]).mean()
            (loss / manifest.batch).backward()
            total += loss.item() / manifest.batch
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen.append((total, grads))
    return seen, model.state_dict()


def test_accumulation_and_prefetch_change_nothing(unbroken: TrainManifest, tmp_path: Path) -> None:
    manifest = change(unbroken, out=str(tmp_path / "out"), accumulate=2, prefetch=3)
    assert run(manifest)
    assert losses(manifest) == pytest.approx(losses(unbroken), rel=1e-5)


@pytest.mark.parametrize("how", ["full", "selective"])
def test_checkpointing_changes_nothing(unbroken: TrainManifest, tmp_path: Path, how: str) -> None:
    manifest = change(unbroken, out=str(tmp_path / "out"), checkpointing=how, attention="math")
    assert run(manifest)
    assert losses(manifest) == pytest.approx(losses(unbroken), rel=1e-5)


@pytest.mark.parametrize("name", ["cudnn", "flash3", "flash4"])
def test_attention_kernels_that_cannot_run_here_are_named_and_not_used(
    unbroken: TrainManifest, name: str
) -> None:
    said: list[str] = []
    tokens = torch.ones(1, 1, 4, 8)
    with attention_kernel(change(unbroken, attention=name), CPU, said.append):
        scaled_dot_product_attention(tokens, tokens, tokens)
    assert len(said) == 1 and f"{name} cannot run here (" in said[0] and "()" not in said[0]
    with attention_kernel(change(unbroken, attention="math"), CPU, said.append):
        scaled_dot_product_attention(tokens, tokens, tokens)
    assert len(said) == 1


def test_bf16_trains_fp32_weights(unbroken: TrainManifest, tmp_path: Path) -> None:
    manifest = change(unbroken, out=str(tmp_path / "out"), precision="bf16")
    assert run(manifest)
    assert losses(manifest) == pytest.approx(losses(unbroken), rel=0.05)
    assert {t.dtype for t in weights(tmp_path / "out/export").values()} == {torch.float32}


def test_steps_that_are_not_finite_change_nothing_and_are_counted(
    unbroken: TrainManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = unbroken.stages[0].model_copy(update={"steps": 3})
    manifest = change(unbroken, out=str(tmp_path / "out"), stages=[base], save_every=1, keep_last=9)
    calls = iter(range(100))
    real = loop.layer_loss

    def poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        return real(*arguments, **options) * (float("nan") if next(calls) == 1 else 1.0)

    monkeypatch.setattr(loop, "layer_loss", poisoned)
    assert run(manifest)
    rows = metrics.read(tmp_path / "out/metrics.csv")
    assert [row["skipped"] for row in rows] == [0, 1, 1]
    assert np.isnan(rows[1]["loss"]) and np.isfinite(rows[2]["loss"])
    from safetensors.torch import load_file

    first, second, third = (
        load_file(path / "state.safetensors") for path in checkpoints(tmp_path / "out", "base")
    )
    assert same(first, second) and not same(second, third)


def poison(monkeypatch: pytest.MonkeyPatch, calls: set[int] | range) -> None:
    """Make the losses of these forward passes, counted from 1 in all runs, not finite."""
    count, real = 0, loop.layer_loss

    def poisoned(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        return real(*arguments, **options) * (float("inf") if count in calls else 1.0)

    monkeypatch.setattr(loop, "layer_loss", poisoned)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_stage_whose_every_step_is_skipped_fails_without_an_export(
    unbroken: TrainManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    base = unbroken.stages[0].model_copy(update={"steps": steps})
    manifest = change(unbroken, out=str(tmp_path / "out"), stages=[base], save_every=1)
    poison(monkeypatch, range(1, 100))
    with pytest.raises(ValueError, match=f"{steps} steps in a row, up to step {steps} of {steps}"):
        run(manifest)
    assert not (tmp_path / "out/export").exists() and not (tmp_path / "out/stages").exists()


def test_skips_in_a_row_are_counted_across_a_resume_and_said(
    unbroken: TrainManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = unbroken.stages[0].model_copy(update={"steps": 12})
    limits = {"save_every": 2, "log_every": 1, "max_skips": 4}
    manifest = change(unbroken, out=str(tmp_path / "out"), stages=[base], **limits)
    poison(monkeypatch, {2, 3, 4, 7, 8, 9, 10})  # three in a row are borne, four are not
    with pytest.raises(Killed):
        run(manifest, report=kill_at(8))
    said: list[str] = []
    with pytest.raises(ValueError, match=r"4 steps in a row, up to step 10 of 12.*loss inf"):
        loop.train(manifest, manifest.out, log=said.append)
    assert "6 skipped" in next(line for line in said if line.startswith("base 9/"))
    assert [path.name for path in checkpoints(tmp_path / "out", "base")][-1] == "base-00000008"
    wider = change(manifest, max_skips=5)
    said.clear()
    assert loop.train(wider, wider.out, log=said.append)
    assert any("base: 5 of 12 steps were skipped" in line for line in said)


def test_rows_of_figures_are_never_younger_than_the_checkpoint(
    unbroken: TrainManifest, tmp_path: Path
) -> None:
    manifest = change(unbroken, out=str(tmp_path / "out"), save_every=1, log_every=100)
    with pytest.raises(Killed):
        run(manifest, report=kill_at(3))
    assert len(losses(manifest)) == 3


def test_held_out_loss_is_written_and_the_same_every_time(tmp_path: Path) -> None:
    options = {"latents": "video", "every": 2, "clips": 3, "timesteps": [100, 800]}
    manifest = make_manifest(tmp_path, validation=options)
    assert run(manifest)
    rows = metrics.read(tmp_path / "out/validation.csv")
    assert {(row["step"], row["task"]) for row in rows} >= {(2, "generate"), (5, "decompose")}
    again = change(manifest, out=str(tmp_path / "again"))
    with pytest.raises(Killed):
        run(again, report=kill_at(6))
    assert run(again)
    assert metrics.read(tmp_path / "again/validation.csv") == rows


# ---- gate, frozen weights ---------------------------------------------------------------------


def test_frozen_parameters_stay_bit_identical(unbroken: TrainManifest) -> None:
    kept = Path(unbroken.out) / "stages"
    base, motion, content = (
        weights(kept / name / "export") for name in ("base", "motion", "content")
    )
    start = weights(Path(unbroken.model))
    assert not any(torch.equal(start[k], base[k]) for k in start if k.endswith("to_q.weight"))
    assert same({k: motion[k] for k in base}, base)
    assert same({k: content[k] for k in motion}, motion)
    lora = [k for k in content if k.startswith("content/")]
    assert lora and all("transformer_blocks.1." in k for k in lora)
    assert all(content[k].abs().sum() > 0 for k in lora)


def test_at_gate_0_motion_has_no_gradient_and_no_effect(unbroken: TrainManifest) -> None:
    """And a mixed batch gives the sum of what its halves give."""
    out = Path(unbroken.out)
    model, scheduler = load_model(out / "export", CPU)
    plain, _ = load_model(out / "stages/base/export", CPU)
    stage = unbroken.stages[2]
    process = base_of(model).noise(scheduler)
    order = Order(1, "x", 4, [6, 10], [1, 1], stage.tasks, process.timesteps)
    (batch,) = Batches(open_parts(unbroken, stage), order).step(0)
    names = list(adapters.adapter_parameters(model, "motion"))
    adapters.set_trainable(model, names)

    def gradients(gate: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        lost = loop.layer_loss(
            model,
            process,
            batch.latents,
            batch.prompt_embeds,
            batch.given,
            batch.timesteps,
            batch.noise,
            gate,
        )
        (lost * chosen).sum().backward()
        flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return lost.detach(), torch.cat(flat)

    ones, mixed = torch.ones(4), torch.tensor([1.0, 0.0, 1.0, 0.0])
    lost_0, none = gradients(torch.zeros(4), ones)
    assert none.abs().max() == 0 and len(none) > 0
    lost_1, full = gradients(ones, mixed)
    lost_mixed, part = gradients(mixed, ones)
    assert full.abs().max() > 0
    torch.testing.assert_close(part, full)
    torch.testing.assert_close(lost_mixed, torch.where(mixed > 0, lost_1, lost_0))
    assert not torch.allclose(lost_0, lost_1)
    for path in list(adapters.lora_layers(model, "content").values()):
        torch.nn.init.zeros_(path.lora_B["content"].weight)
    arguments = [batch.latents.flatten(1, 2), batch.prompt_embeds.flatten(1, 2), batch.timesteps]
    with torch.no_grad():
        assert torch.equal(model(*arguments).sample, plain(*arguments).sample)


# ---- several processes ------------------------------------------------------------------------


def torchrun(manifest: TrainManifest, folder: Path, workers: int, *more: str) -> None:
    path = folder / "manifest.yaml"
    path.write_text(manifest.model_dump_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", str(workers), "-m", "trainer.loop", str(path), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_processes_give_the_curve_of_one_and_hand_over_to_one(
    unbroken: TrainManifest, tmp_path: Path
) -> None:
    manifest = change(unbroken, out=str(tmp_path / "out"), save_every=2)
    torchrun(manifest, tmp_path, 2, "--stage", "base")
    assert losses(manifest) == pytest.approx(losses(unbroken)[:5], rel=1e-5)
    assert run(manifest)
    assert losses(manifest) == pytest.approx(losses(unbroken), rel=1e-4)


def test_the_loop_needs_no_ray_and_no_arrow() -> None:
    code = (
        "import sys, trainer.loop; "
        "print([m for m in ('ray', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert len((ROOT / "trainer/loop.py").read_text().splitlines()) <= 300
