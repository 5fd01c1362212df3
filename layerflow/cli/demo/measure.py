"""What the demo measures: mattes against truth, decomposition against baselines, motion kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerflow.clip import (
    ALPHA,
    BACKGROUND,
    BLENDED,
    FOREGROUND,
    PROMPTED,
    LayeredClip,
    resize_clip,
)
from layerflow.evaluation import baselines, metrics
from layerflow.model.layers import TASKS

if TYPE_CHECKING:
    from layerflow.cli.demo.steps import Demo

BATCH = 32
LOSS_STEPS = 50  # steps that a first or last loss is the mean of
SHOWN = 6  # samples on a contact sheet
STAGES = ("base", "content")
"""After which decomposition is measured. The motion LoRA does nothing at gate 0."""


def load_clips(demo: Demo, corpus: str, limit: int | None = None) -> list[LayeredClip]:
    """The first clips of a corpus at the size and length that the network sees."""
    from layerflow.corpus.table import Corpus
    from pipelines.encode.clip_latents import decode

    said = demo.manifest.encode
    rows = Corpus.open(demo.corpus(corpus))
    count = len(rows) if limit is None else min(limit, len(rows))
    return [resize_clip(decode(rows.row(i), said.frames), *said.size) for i in range(count)]


def matte_ious(demo: Demo) -> list[dict[str, Any]]:
    """IoU of every mined clip's matte with the true one; empty for videos without truth."""
    from layerflow.clip import resize_cover
    from layerflow.corpus.table import Corpus
    from layerflow.media.cells import decode_alpha

    truths, out = demo.media("videos-truth"), []
    corpus = Corpus.open(demo.corpus("mined"))
    for row in corpus.rows([ALPHA, "origin", "num_frames"]):
        uri, fps = row["origin"]["uri"], demo.manifest.media.videos.fps
        path = truths / f"{Path(uri).stem}.mkv"
        if demo.videos is not None or not path.is_file():
            continue
        alpha = decode_alpha(row[ALPHA])
        whole = decode_alpha(path.read_bytes())
        start, end = (round(row["origin"][key] * fps) for key in ("start", "end"))
        places = np.linspace(start, max(start, end - 1), len(alpha)).round().astype(int)
        truth = resize_cover(whole[np.clip(places, 0, len(whole) - 1)], *alpha.shape[1:])
        out.append({"video": uri, "iou": metrics.alpha_iou(alpha, truth)})
    return out


def stage_losses(demo: Demo) -> dict[str, dict[str, Any]]:
    """First and last loss of each stage (means of some steps), and the curve."""
    from trainer.metrics import read

    path = demo.out / "train" / "metrics.csv"
    rows = read(path) if path.is_file() else []
    out: dict[str, dict[str, Any]] = {}
    for stage in demo.train.stages:
        losses = [float(row["loss"]) for row in rows if row["stage"] == stage.name]
        seconds = [float(row["seconds"]) for row in rows if row["stage"] == stage.name]
        if not losses:
            continue
        few = max(1, min(LOSS_STEPS, len(losses) // 4))
        out[stage.name] = {
            "steps": len(losses),
            "first": float(np.mean(losses[:few])),
            "last": float(np.mean(losses[-few:])),
            "seconds_per_step": float(np.median(seconds)),
            "curve": smoothed(losses, few),
        }
    return out


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Running means of ``width`` values, thinned to at most 200 points."""
    sums = np.convolve(values, np.ones(width) / width, mode="valid")
    picks = np.linspace(0, len(sums) - 1, min(200, len(sums))).round().astype(int)
    return [round(float(sums[i]), 5) for i in picks]


def sampled(
    demo: Demo,
    stage: str,
    clips: Sequence[LayeredClip],
    layers: Sequence[str],
    *,
    steps: int,
    gate: float = 0.0,
) -> list[LayeredClip]:
    """The clips' missing layers, from the model after a stage. Each sample has its own seed."""
    import torch

    from layerflow.evaluation.predictions import complete
    from layerflow.model import adapters
    from layerflow.model.sample import load_pipeline

    pipe = load_pipeline(demo.stage_export(stage), "float32")
    pipe.set_progress_bar_config(disable=True)
    made: list[LayeredClip] = []
    for start in range(0, len(clips), BATCH):
        batch = clips[start : start + BATCH]
        seeds = [demo.manifest.seed + start + i for i in range(len(batch))]
        with adapters.motion_gate(pipe.transformer, torch.full((len(batch),), gate)):
            made += complete(pipe, batch, layers, steps=steps, guidance=1.0, seeds=seeds)
    return made


def show(demo: Demo, name: str, made: Sequence[LayeredClip], texts: Sequence[str]) -> None:
    """A contact sheet of the first samples: ``OUT/sheets/NAME.png``."""
    from layerflow.media.contact_sheet import save_sheet

    path = demo.out / "sheets" / f"{name}.png"
    save_sheet(path, made[:SHOWN], texts[:SHOWN], columns_per_layer=4, height=64)


def decomposition(demo: Demo) -> dict[str, Any]:
    """`decomposed` on held-out clips of the training clips' look; baselines are tuned on some of
    the latter."""
    tuning = load_clips(demo, "pasted", demo.manifest.measure.tuning_clips)
    return decomposed(demo, load_clips(demo, "held-out"), tuning, "")


def decomposition_new(demo: Demo) -> dict[str, Any]:
    """`decomposed` on moving clips of the stills' look, which no training saw move. Baselines are
    tuned on the very clips that score them, which favours them."""
    clips = load_clips(demo, demo.new)
    return decomposed(demo, clips, clips, ", the stills' look")


def decomposed(
    demo: Demo, held_out: Sequence[LayeredClip], tuning: Sequence[LayeredClip], title: str
) -> dict[str, Any]:
    """Alpha IoU (and what is behind the subject) after each stage, and of every baseline."""
    said, models = demo.manifest.measure, {}
    for stage in STAGES:
        if not demo.stage_export(stage).is_dir():
            continue
        made = sampled(demo, stage, held_out, (BLENDED,), steps=said.decompose_steps)
        pairs = list(zip(made, held_out, strict=True))
        ious = [metrics.alpha_iou(m.alpha, clip.alpha) for m, clip in pairs]
        show(demo, f"decomposed after {stage}{title}", made, [f"IoU {iou:.3f}" for iou in ious])
        behind = [
            metrics.masked_psnr(m.background, clip.background, clip.alpha > 127)
            for m, clip in pairs
        ]
        models[stage] = {
            "iou": float(np.mean(ious)),
            "mad": float(np.mean([metrics.alpha_mad(m.alpha, c.alpha) for m, c in pairs])),
            "background_psnr": float(np.nanmean(behind)),
        }
    scores = baselines.trivial_baselines(
        [(clip.blended, clip.alpha) for clip in tuning],
        [(clip.blended, clip.alpha) for clip in held_out],
    )
    return {"clips": len(held_out), "models": models, "baselines": scores}


def motion(demo: Demo) -> dict[str, Any]:
    """Drift (pixels a frame) and colour of generated foregrounds after each stage.

    All rows start from the same noise. The base and motion rows have the prompts of moving
    clips; the content rows those of the stills, whose colours they are to have learnt.
    """
    said = demo.manifest.measure
    held_out = load_clips(demo, "held-out")
    stills = load_clips(demo, "stills", said.drift_clips)
    moving = list(islice(cycle(held_out), said.drift_clips))
    new = [replace(c, prompts=s.prompts) for c, s in zip(moving, cycle(stills), strict=False)]
    rows = {
        "moving clips (truth)": foreground_figures(held_out),
        "stills (truth)": foreground_figures(stills),
    }
    for name, stage, gate, clips in (
        ("base", "base", 0.0, moving),
        ("motion LoRA, gate 1", "motion", 1.0, moving),
        ("content LoRA, gate 1", "content", 1.0, new),
        ("content LoRA, gate 0", "content", 0.0, new),
    ):
        if not demo.stage_export(stage).is_dir():
            continue
        made = sampled(demo, stage, clips, (), steps=said.generate_steps, gate=gate)
        rows[name] = foreground_figures(made)
        texts = [f"drift {metrics.drift(m.alpha):.2f} px/frame" for m in made]
        show(demo, f"generated with {name}", made, texts)
    kept = None
    if "base" in rows and "content LoRA, gate 0" in rows:
        kept = rows["content LoRA, gate 0"]["drift"] / max(rows["base"]["drift"], 1e-6)
    return {"rows": rows, "kept": kept}


def foreground_figures(clips: Sequence[LayeredClip]) -> dict[str, float]:
    """Means over clips: drift of the matte, red minus blue inside it (-1..1), its area."""
    layers = [(clip.foreground, clip.alpha > 127) for clip in clips]
    hues = [
        float((colour[..., 0].astype(np.float32) - colour[..., 2])[inside].mean()) / 255
        for colour, inside in layers
        if inside.any()
    ]
    return {
        "drift": float(np.mean([metrics.drift(clip.alpha) for clip in clips])),
        "red_minus_blue": float(np.mean(hues)) if hues else float("nan"),
        "area": float(np.mean([inside.mean() for _, inside in layers])),
    }


def sample_tasks(demo: Demo) -> list[Path]:
    """All four tasks on one held-out clip, as ``layerflow sample`` does them."""
    from layerflow.media.cells import encode_preview, write_prores4444
    from layerflow.model.sample import SampleRequest, run_sample

    clip = load_clips(demo, "held-out", 1)[0]
    folder = demo.out / "samples"
    inputs = folder / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    files = {layer: inputs / f"{layer}.mp4" for layer in (BACKGROUND, BLENDED)}
    for layer, path in files.items():
        data = encode_preview(clip.layer(layer), clip.fps, crf=4)
        path.write_bytes(data)
    cutout = np.concatenate([clip.foreground, clip.alpha[..., None]], axis=3)
    files[FOREGROUND] = inputs / "foreground.mov"
    write_prores4444(files[FOREGROUND], cutout, clip.fps)
    said = demo.manifest.measure
    made = []
    for name, layers in TASKS.items():  # the matte lies in the foreground's file
        request = SampleRequest(
            model=demo.export,
            out=folder / name,
            given={layer: files[layer] for layer in layers if layer in files},
            prompt={layer: clip.prompts[layer] for layer in PROMPTED if clip.prompts.get(layer)},
            seed=demo.manifest.seed,
            id=name,
            fps=clip.fps,
            steps=said.decompose_steps if name == "decompose" else said.generate_steps,
            guidance=1.0,
        )
        made += run_sample(request, quiet=True)
    return made


MEASURES: dict[str, Callable[[Demo], dict[str, Any]]] = {
    "decomposition": decomposition,
    "decomposition_new": decomposition_new,
    "motion": motion,
}
"""Key of the result -> what finds it, after training."""
