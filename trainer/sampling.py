"""Clips sampled at a validation: fixed held-out clips, fixed seeds, from the weights of that step.

The loop leaves a `SampleJob`, which says where the weights of that step lie, and goes on. Where the
job runs is the launcher's choice: by default there and then in the process of rank 0; under Ray in
a task of its own, so that no rank waits. Results lie in `OUT/samples/STEP`, and in TensorBoard.
"""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from layerflow.clip import U8
from layerflow.files import replacing, write_json
from layerflow.layer_set import EFFECTS, model_layers
from layerflow.media.layer_stack import LayerStack, sampled_stack
from layerflow.model import adapters
from layerflow.model.base import base_of
from layerflow.model.info import sampling_settings
from layerflow.model.layers import given_layers
from manifests.train import TrainManifest, parse
from manifests.train_stage import Stage
from trainer.export import model_after
from trainer.held_out import frozen_moment, held_out
from trainer.layers import take_layers
from trainer.memory.hold import hold
from trainer.runtime import run_as_trained
from trainer.stages import gate_of

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class SampleJob:
    """Plain values only: the job may run in another process, on another machine that sees `out`.

    folder: of this step's results; its `weights.safetensors` goes when they are there.
    """

    manifest: str
    out: str
    folder: str
    stage: str
    step: int
    device: str = "cpu"


def snapshot(
    out: Path,
    manifest: TrainManifest,
    stage: Stage,
    tensors: dict[str, torch.Tensor],
    step: int,
    device: torch.device,
) -> SampleJob:
    """Put this step's trained weights aside for a job."""
    folder = out / "samples" / f"{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    text = manifest.model_dump_json()
    return SampleJob(text, str(out), str(folder), stage.name, step, device.type)


def run_job(job: SampleJob) -> None:
    """Sample, score and write. A job whose weights are gone has been done before."""
    from layerflow.evaluation.predictions import complete
    from layerflow.evaluation.run import score_clip, summarise
    from layerflow.media.cells import decode_png, encode_preview
    from layerflow.media.contact_sheet import four_up, save_sheet

    manifest, folder = parse(json.loads(job.manifest)), Path(job.folder)
    assert manifest.validation is not None
    if not (folder / WEIGHTS).is_file():
        return
    options = manifest.validation
    pipe = build_pipeline(job, manifest)
    gate = gate_of(manifest.stage(job.stage))
    clips, embeds = held_out_clips(manifest, pipe, gate)
    rows: list[dict[str, Any]] = []
    pictures: dict[str, tuple[U8, bytes]] = {}
    for task in options.tasks:
        layers = given_layers(task, pipe.transformer.layer_set.layers)
        made: list[LayerStack] = []
        for index, clip in enumerate(clips):
            with adapters.motion_gate(pipe.transformer, torch.tensor([float(gate)])):
                made += complete(
                    pipe,
                    [clip],
                    layers,
                    steps=options.sample_steps,
                    guidance=guidance_scale(manifest),
                    seeds=[index],
                    prompt_embeds=embeds[index][None],
                )
            rows.append({"task": task, "id": index, **score_clip(made[-1], clip, layers)})
            mosaic = four_up(made[-1].joined())
            (folder / f"{task}-{index}.mp4").write_bytes(encode_preview(mosaic, clip.fps))
        shown = [c for pair in zip(clips, made, strict=True) for c in pair]
        labels = [f"{what} {i}" for i in range(len(clips)) for what in ("held out", "sampled")]
        sheet = save_sheet(folder / f"{task}.png", shown, labels, columns_per_layer=4, height=96)
        moving = np.concatenate([four_up(clip.joined()) for clip in made], axis=2)
        pictures[task] = decode_png(sheet.read_bytes()), as_gif(moving, clips[0].fps)
    scores = summarise(rows)
    write_json(folder / "metrics.json", {"step": job.step, "tasks": scores})
    if manifest.tensorboard:
        to_tensorboard(Path(job.out) / "tensorboard" / "samples", job.step, pictures, scores)
    (folder / WEIGHTS).unlink()


def build_pipeline(job: SampleJob, manifest: TrainManifest) -> Any:
    """The pipeline of that step: finished stages, then the job's own weights."""
    from layerflow.model.autoencoder import load_autoencoder

    device = torch.device(job.device)
    weights = load_file(Path(job.folder) / WEIGHTS)
    transformer, scheduler = model_after(manifest, Path(job.out), job.stage, weights)
    hold(transformer, manifest, [], device)
    vae = load_autoencoder(Path(manifest.model) / "vae").to(device)
    transformer = run_as_trained(transformer.eval(), manifest, device)
    pipeline = base_of(transformer).pipeline
    pipe = pipeline(None, None, vae, transformer, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guidance_scale(manifest: TrainManifest) -> float:
    """The validation's, else the model's own, else the pipeline's."""
    assert manifest.validation is not None
    return sampling_settings(manifest.model, guidance=manifest.validation.guidance)[1]


def held_out_clips(
    manifest: TrainManifest, pipe: Any, gate: int
) -> tuple[list[LayerStack], list[torch.Tensor]]:
    """The first held-out clips of a motion gate as the autoencoder shows them, each in the model's
    set of layers, and their prompts `[P, L, D]`."""
    from layerflow.model import frames
    from layerflow.model.autoencoder import decode_layers

    found = held_out(manifest)
    assert found is not None
    part = found.parts[gate]
    clips, embeds = [], []
    known = model_layers(manifest.model)
    for index, row in enumerate(part.rows[: found.options.samples]):
        present = part.shapes[index].layers
        item = take_layers(part.source.item(row), present)
        latents = item["moments"][:, : item["moments"].shape[1] // 2].swapaxes(1, 2)
        latents = part.show(index, latents, frozen_moment(item["id"]))
        pixels = decode_layers(pipe.vae, np.ascontiguousarray(latents), present)
        done = frames.finish({name: value[None] for name, value in pixels.items()}, None)
        layers = {name: frames.convert(value, "uint8")[0] for name, value in done.items()}
        clip = sampled_stack(layers, {}, float(item["fps"]))
        whole = (EFFECTS in present) == (EFFECTS in known.layers)
        clips.append(replace(clip, layers=known) if whole else clip)
        embeds.append(torch.from_numpy(item["prompt_embeds"]))
    return clips, embeds


# ---- pictures ---------------------------------------------------------------------------------


def as_gif(frames: U8, fps: float) -> bytes:
    """``[T, H, W, 3]`` as an endless GIF: what TensorBoard plays."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    spacing = round(1000 / fps)
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=spacing, loop=0)
    return file.getvalue()


def to_tensorboard(
    folder: Path, step: int, pictures: dict[str, tuple[U8, bytes]], scores: dict[str, Any]
) -> None:
    """Contact sheets, moving clips and scores, as a run of their own beside the curves."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    from layerflow.media.cells import encode_png

    values = []
    for task, (sheet, gif) in pictures.items():
        for kind, data, size in (("sheet", encode_png(sheet), sheet.shape), ("clips", gif, None)):
            height, width = size[:2] if size else (0, 0)
            picture = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=data
            )
            values.append(Summary.Value(tag=f"{task}/{kind}", image=picture))
    for task, measures in scores.items():
        for name, measure in measures.items():
            values.append(Summary.Value(tag=f"{task}/{name}", simple_value=measure["mean"]))
    writer = EventFileWriter(str(folder))
    writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
    writer.close()
