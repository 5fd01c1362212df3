"""Validation: the best pipeline kept, clips sampled beside the training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_launch import losses
from trainer_kit import make_manifest, weights

from layerflow.decode import Decoder
from manifests.train import TrainManifest
from trainer import metrics
from trainer.launch import launch
from trainer.sampling import as_gif, run_job

OPTIONS = {
    "latents": "video",
    "every": 3,
    "clips": 3,
    "timesteps": [100, 800],
    "samples": 2,
    "sample_steps": 2,
    "keep_best": True,
}


def with_validation(folder: Path, **changes: object) -> TrainManifest:
    return make_manifest(folder, validation=OPTIONS, **changes)


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
    jobs = []
    from trainer import loop

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
