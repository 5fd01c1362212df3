"""Validation: the best pipeline kept, clips sampled beside the training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from layerflow.media.decode import Decoder
from layerflow.model import adapters
from layerflow.model.info import SETTINGS
from manifests.train import TrainManifest, parse
from tests.support.trainer_kit import make_latents, make_manifest, weights
from tests.support.training_runs import VALIDATION, losses, with_validation
from trainer import loop, metrics, validation
from trainer import runtime as network
from trainer.distributed.launch import launch
from trainer.held_out import HeldOut, held_out
from trainer.planning.check import check
from trainer.planning.plan import make_plan
from trainer.sampling import as_gif, guidance_scale, run_job

STAGES = ("base", "motion", "content")


def test_clips_are_sampled_scored_and_shown(tmp_path: Path) -> None:
    manifest = with_validation(tmp_path, tensorboard=True)
    assert launch(manifest, only="base", log=lambda line: None)
    out = tmp_path / "out"
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["00000003", "00000005"]
    folder = out / "samples/00000003"
    names = {p.name for p in folder.iterdir()}
    assert names == {
        *(f"{task}-{i}.mp4" for task in ("generate", "decompose") for i in range(2)),
        "generate.png",
        "decompose.png",
        "metrics.json",
    }
    with Decoder() as decoder:
        frames, rate = decoder.read_frames((folder / "generate-1.mp4").resolve())
    assert frames.shape[:3] == (2, 32, 32) and rate == 8  # four layers of 16x16
    scores = json.loads((folder / "metrics.json").read_text())["tasks"]
    assert scores["decompose"]["iou"]["clips"] == 2 and "iou" not in scores["generate"]
    tags = tensorboard_tags(out / "tensorboard/samples")
    assert {"generate/clips", "decompose/sheet", "decompose/iou"} <= tags


def tensorboard_tags(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    return {*tags["images"], *tags["scalars"]}


def test_the_best_pipeline_is_that_of_the_lowest_loss(tmp_path: Path) -> None:
    manifest = with_validation(tmp_path)
    quiet = manifest.validation.model_copy(update={"samples": 0, "every": 1})  # type: ignore[union-attr]
    manifest = manifest.model_copy(update={"validation": quiet})
    assert launch(manifest, only="base", log=lambda line: None)
    rows = metrics.read(tmp_path / "out/validation.csv")
    means = {step: np.mean([r["loss"] for r in rows if r["step"] == step]) for step in range(1, 6)}
    said = json.loads((tmp_path / "out/best/base/best.json").read_text())
    assert said["step"] == min(means, key=lambda step: means[step])
    assert said["loss"] == pytest.approx(min(means.values()))
    assert weights(tmp_path / "out/best/base").keys() == weights(tmp_path / "out/export").keys()


def test_a_job_samples_from_the_weights_of_its_step(tmp_path: Path) -> None:
    """And from those of finished stages; done twice it does nothing."""
    manifest = with_validation(tmp_path)
    jobs: list[Any] = []
    assert loop.train(manifest, manifest.out, log=lambda line: None, sample=jobs.append)
    assert [(job.stage, job.step) for job in jobs] == [
        ("base", 3),
        ("base", 5),
        ("motion", 8),
        ("motion", 9),
        ("content", 12),
        ("content", 13),
    ]
    last = Path(jobs[-1].folder)
    assert [p.name for p in last.iterdir()] == ["weights.safetensors"]
    run_job(jobs[-1])
    assert (last / "metrics.json").is_file() and not (last / "weights.safetensors").exists()
    run_job(jobs[-1])


class Attention(TorchDispatchMode):
    """Notes the type of each attention product's input, and its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.dtype, int]] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if "scaled_dot_product" in str(function):
            self.seen.add((arguments[0].dtype, len(arguments[0])))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(("batch", "passes"), [(4, {1}), (8, {2, 1})])
def test_validation_and_sampling_compute_as_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, passes: set[int]
) -> None:
    """In bf16, with its attention kernel, and in forward passes that are not larger."""
    few = {"clips": 2, "samples": 1, "every": 5, "timesteps": [100, 400, 800]}
    kept: list[Any] = []
    wanted: list[Any] = []
    real_losses, real_kernel = HeldOut.losses, network.attention_kernel

    def losses(*arguments: Any, **options: Any) -> Any:
        with Attention() as watched:
            result = real_losses(*arguments, **options)
        kept.append(watched.seen)
        return result

    def kernel(said: TrainManifest, device: torch.device) -> Any:
        wanted.append(said.attention)
        return real_kernel(said, device)

    monkeypatch.setattr(HeldOut, "losses", losses)
    how = {"precision": "bf16", "attention": "flash", "batch": batch, "accumulate": 4}
    manifest = make_manifest(tmp_path, validation=VALIDATION | few | {"guidance": 1.0}, **how)
    jobs: list[Any] = []
    assert loop.train(
        manifest, manifest.out, only="base", log=lambda line: None, sample=jobs.append
    )
    assert kept == [{(torch.bfloat16, size) for size in passes}]
    monkeypatch.setattr(network, "attention_kernel", kernel)
    with Attention() as watched:
        run_job(jobs[0])
    assert watched.seen == {(torch.bfloat16, 1)} and set(wanted) == {"flash"}


def test_samples_are_guided_as_the_manifest_or_the_model_says(tmp_path: Path) -> None:
    manifest = with_validation(tmp_path)
    assert guidance_scale(manifest) == 6.0  # the pipeline's
    settings = {"sampling": {"num_inference_steps": 16, "guidance_scale": 2.5}}
    (tmp_path / "model" / SETTINGS).write_text(json.dumps(settings))
    assert guidance_scale(manifest) == 2.5
    said = with_validation(tmp_path).model_dump()
    said["validation"]["guidance"] = 1.0
    assert guidance_scale(parse(said)) == 1.0


@pytest.mark.parametrize("encoded", [False, True])
def test_the_motion_stage_is_judged_at_gate_1_on_frozen_clips(
    tmp_path: Path, encoded: bool
) -> None:
    options: dict[str, Any] = VALIDATION | {"every": 2, "samples": 0}
    if encoded:
        options |= {"frozen": "stills"}
    manifest = make_manifest(tmp_path, validation=options)
    said: list[str] = []
    assert loop.train(manifest, manifest.out, log=said.append)
    rows = metrics.read(tmp_path / "out/validation.csv")
    gates = {name: {r["gate"] for r in rows if r["stage"] == name} for name in STAGES}
    assert gates == {"base": {0}, "motion": {1}, "content": {0}}
    motion = [r["loss"] for r in rows if r["stage"] == "motion" and r["task"] == "generate"]
    assert len(set(motion)) == len(motion) == 2
    best = json.loads((tmp_path / "out/best/motion/best.json").read_text())
    assert best["losses"]["generate"] == min(motion)
    assert "motion: at gate 0 the network is as before the stage (losses differ by 0.0)" in said
    found = held_out(manifest)
    assert found is not None
    moving, frozen = (found._clip(part, 0, "generate", gate) for gate, part in
                      enumerate(found.parts))  # fmt: skip
    assert moving.latents.shape == frozen.latents.shape
    first, second = frozen.latents[0].unbind(1)
    assert torch.equal(first, second) and not torch.equal(*moving.latents[0].unbind(1))
    assert frozen.motion_gate.tolist() == [1, 1] and moving.motion_gate.tolist() == [0, 0]


def test_a_motion_stage_that_changes_the_network_at_gate_0_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = with_validation(tmp_path)
    options = manifest.validation.model_copy(update={"samples": 0, "keep_best": False})  # type: ignore[union-attr]
    manifest = manifest.model_copy(update={"validation": options})
    assert loop.train(manifest, manifest.out, only="base", log=lambda line: None)
    monkeypatch.setattr(adapters.GateHook, "__call__", lambda self, module, inputs, output: output)
    with pytest.raises(ValueError, match=r"stage 'motion' changed the network at motion gate 0"):
        loop.train(manifest, manifest.out, log=lambda line: None)
    assert not (tmp_path / "out/stages/motion").exists()


def test_a_motion_stage_s_samples_stand_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"samples": 1, "tasks": ["decompose"], "keep_best": False, "every": 100}
    manifest = make_manifest(tmp_path, validation=VALIDATION | few)
    jobs: list[Any] = []
    assert loop.train(manifest, manifest.out, log=lambda line: None, sample=jobs.append)
    gates: list[float] = []
    truths: list[Any] = []
    from layerflow.evaluation import predictions

    real = predictions.complete

    def complete(pipe: Any, clips: Any, *arguments: Any, **options: Any) -> Any:
        gates.append(float(pipe.transformer.motion_gate.value))
        truths.extend(clips)
        return real(pipe, clips, *arguments, **options)

    monkeypatch.setattr(predictions, "complete", complete)
    by_stage = {job.stage: job for job in jobs}
    for stage, gate in (("motion", 1.0), ("content", 0.0)):
        gates.clear(), truths.clear()
        run_job(by_stage[stage])
        assert set(gates) == {gate}
        still = [np.array_equal(*clip.layer("blended")[:2]) for clip in truths]
        assert all(still) if gate else not any(still)


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    said: dict[str, Any] = {"run": None}
    manifest = with_validation(tmp_path)
    found = held_out(manifest)
    run = SimpleNamespace(held_out=found, out=tmp_path / "out", **said)
    validation.keep_best(run, manifest.stages[0], 1, {"generate": float("nan")}, 0)  # type: ignore[arg-type]
    assert not (tmp_path / "out/best").exists()


def test_losses_of_other_clips_do_not_keep_the_best(tmp_path: Path) -> None:
    """The validation may change between a run and its continuation."""
    manifest = with_validation(tmp_path)
    wanted = {"latents": ["video", "stills"], "clips": [3, 2], "timesteps": [[100], [800]]}
    for field, values in wanted.items():
        said = [
            validation.measured(found, gate)
            for value in values
            for gate in (0, 1)
            if (found := held_out(parse(manifest.model_dump() | {
                "validation": VALIDATION | {field: value}})))
        ]  # fmt: skip
        assert len(set(said)) == 4


def test_a_validation_that_cannot_run_is_refused_before_the_first_step(tmp_path: Path) -> None:
    manifest = with_validation(tmp_path)
    none = parse(manifest.model_dump() | {"validation": VALIDATION | {"kinds": ["image"]}})
    with pytest.raises(ValueError, match="none of its 10 rows is of kinds"):
        check(none)
    check(manifest)
    (tmp_path / "model/vae/config.json").unlink()
    with pytest.raises(ValueError, match="no autoencoder"):
        check(manifest)


def test_the_plan_counts_the_validation_that_will_run(tmp_path: Path) -> None:
    """Its own clips, standing still or not, its passes and its guidance."""
    make_manifest(tmp_path)
    make_latents(tmp_path / "large", count=3, frames=1, size=8, seed=2)

    def plans(**changes: Any) -> list[Any]:
        options: dict[str, Any] = VALIDATION | {"guidance": 1.0} | changes
        return make_plan(make_manifest(tmp_path, validation=options))

    plain, frozen = plans(), plans(frozen=str(tmp_path / "large"))
    for index, stage in enumerate(STAGES):
        more = frozen[index].validation - plain[index].validation
        assert more > 0 if stage == "motion" else more == 0
    assert plans(timesteps=[100])[0].validation < plain[0].validation
    video = make_latents(tmp_path / "wide", count=3, size=32, seed=3)
    guided = [plans(latents=str(video), guidance=scale)[0].sampling for scale in (1.0, 6.0)]
    assert guided[1] > guided[0]


def test_gifs_play_at_the_clip_rate() -> None:
    import io

    gif = Image.open(io.BytesIO(as_gif(np.random.default_rng(0).integers(
        0, 256, (3, 8, 8, 3)).astype(np.uint8), 8.0)))  # fmt: skip
    assert gif.n_frames == 3 and gif.info["duration"] in (120, 125) and gif.info["loop"] == 0


@pytest.mark.slow
def test_ray_samples_in_a_task_of_its_own(tmp_path: Path) -> None:
    manifest = with_validation(tmp_path, workers=2)
    assert launch(manifest, only="base", log=lambda line: None)
    assert len(losses(tmp_path / "out")) == 5
    for step in ("00000003", "00000005"):
        assert (tmp_path / "out/samples" / step / "metrics.json").is_file()
    assert not list((tmp_path / "out").rglob("weights.safetensors"))
