"""What the demo measures: mattes against truth, decomposition against baselines, motion kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerflow.clip import PROMPTED, U8, LayeredClip, resize_clip
from layerflow.evaluation import baselines, metrics

if TYPE_CHECKING:
    from layerflow.cli.demo.steps import Demo

BATCH = 32
LOSS_STEPS = 50  # steps that a first or last loss is the mean of
SHOWN = 6  # samples on a contact sheet
STAGES = ("base", "motion", "content")


def measure(demo: Demo) -> dict[str, Any]:
    """Every figure of the demo's table, as plain JSON values."""
    held_out = load_clips(demo, "held-out")
    return {
        "mattes": matte_ious(demo),
        "losses": stage_losses(demo),
        "decomposition": decomposition(demo, held_out),
        "motion": motion(demo, held_out),
    }


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
    for row in corpus.rows(["alpha", "origin", "num_frames"]):
        uri, fps = row["origin"]["uri"], demo.manifest.media.videos.fps
        path = truths / f"{Path(uri).stem}.mkv"
        if demo.videos is not None or not path.is_file():
            continue
        alpha = decode_alpha(row["alpha"])
        whole = decode_alpha(path.read_bytes())
        start, end = (round(row["origin"][key] * fps) for key in ("start", "end"))
        places = np.linspace(start, max(start, end - 1), len(alpha)).round().astype(int)
        truth = resize_cover(whole[np.clip(places, 0, len(whole) - 1)], *alpha.shape[1:])
        out.append({"video": uri, "iou": metrics.alpha_iou(alpha, truth)})
    return out


def stage_losses(demo: Demo) -> dict[str, dict[str, Any]]:
    """First and last loss of each stage (means of some steps), and the curve."""
    from trainer.metrics import read

    rows = read(demo.out / "train" / "metrics.csv")
    out: dict[str, dict[str, Any]] = {}
    for stage in demo.train.stages:
        losses = [float(row["loss"]) for row in rows if row["stage"] == stage.name]
        seconds = [float(row["seconds"]) for row in rows if row["stage"] == stage.name]
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


def open_model(folder: Path) -> Any:
    """A pipeline that prints no progress bars."""
    from layerflow.model.sample import load_pipeline

    pipe = load_pipeline(folder, "float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def complete(
    pipe: Any,
    prompts: Sequence[Mapping[str, str]],
    given: Sequence[Mapping[str, U8]],
    *,
    steps: int,
    seed: int,
    size: Sequence[int],
    motion_gate: float | None = None,
) -> list[dict[str, U8]]:
    """Samples: layer -> uint8 frames for each prompt. Each sample has its own seed."""
    import torch

    from layerflow.model import adapters

    out: list[dict[str, U8]] = []
    for start in range(0, len(prompts), BATCH):
        chosen = slice(start, start + BATCH)
        here = [dict(prompt) for prompt in prompts[chosen]]
        seeds = range(seed + start, seed + start + len(here))
        gate = torch.full((len(here),), motion_gate or 0.0)
        with adapters.motion_gate(pipe.transformer, gate):
            made = pipe(
                prompt=here,
                given=[dict(item) for item in given[chosen]],
                height=size[0],
                width=size[1],
                num_frames=size[2],
                num_inference_steps=steps,
                guidance_scale=1.0,
                generator=[torch.Generator().manual_seed(s) for s in seeds],
                output_type="uint8",
            )
        for i in range(len(here)):
            layers = ("foreground", "alpha", "background", "blended")
            out.append({layer: np.asarray(made[layer][i]) for layer in layers})
    return out


def show(demo: Demo, name: str, made: Sequence[dict[str, U8]], texts: Sequence[str]) -> None:
    """A contact sheet of the first samples: ``OUT/sheets/NAME.png``."""
    from layerflow.media.contact_sheet import save_sheet

    clips = [
        LayeredClip(
            np.ascontiguousarray(m["foreground"][..., :3]),
            m["alpha"],
            m["background"],
            m["blended"],
        )
        for m in made[:SHOWN]
    ]
    path = demo.out / "sheets" / f"{name}.png"
    save_sheet(path, clips, texts[:SHOWN], columns_per_layer=4, height=64)


def shape_of(demo: Demo) -> tuple[int, int, int]:
    """Height, width and frames that the network works at."""
    said = demo.manifest.encode
    return said.size[0], said.size[1], said.frames


def decomposition(demo: Demo, held_out: Sequence[LayeredClip]) -> dict[str, Any]:
    """Alpha IoU (and what is behind the subject) on held-out clips, and every baseline."""
    said, seed = demo.manifest.measure, demo.manifest.seed
    models = {}
    for stage in STAGES:
        if not demo.stage_export(stage).is_dir():
            continue
        made = complete(
            open_model(demo.stage_export(stage)),
            [clip.prompts for clip in held_out],
            [{"blended": clip.blended} for clip in held_out],
            steps=said.decompose_steps,
            seed=seed,
            size=shape_of(demo),
        )
        pairs = list(zip(made, held_out, strict=True))
        texts = [f"IoU {metrics.alpha_iou(m['alpha'], c.alpha):.3f}" for m, c in pairs]
        show(demo, f"decomposed after {stage}", made, texts)
        behind = [
            metrics.masked_psnr(m["background"], clip.background, clip.alpha > 127)
            for m, clip in pairs
        ]
        models[stage] = {
            "iou": float(np.mean([metrics.alpha_iou(m["alpha"], c.alpha) for m, c in pairs])),
            "mad": float(np.mean([metrics.alpha_mad(m["alpha"], c.alpha) for m, c in pairs])),
            "background_psnr": float(np.nanmean(behind)),
        }
    training = load_clips(demo, "pasted", said.tuning_clips)
    scores = baselines.trivial_baselines(
        [(clip.blended, clip.alpha) for clip in training],
        [(clip.blended, clip.alpha) for clip in held_out],
    )
    return {"clips": len(held_out), "models": models, "baselines": scores}


def motion(demo: Demo, held_out: Sequence[LayeredClip]) -> dict[str, Any]:
    """Drift (pixels a frame) and colour of generated foregrounds after each stage.

    All rows start from the same noise. The base and motion rows have the prompts of moving
    clips; the content rows those of the stills, whose colours they are to have learnt.
    """
    said = demo.manifest.measure
    stills = load_clips(demo, "stills", said.drift_clips)
    moving = repeated([clip.prompts for clip in held_out], said.drift_clips)
    new = repeated([clip.prompts for clip in stills], said.drift_clips)
    rows = {
        "moving clips (truth)": foreground_figures([(c.foreground, c.alpha) for c in held_out]),
        "stills (truth)": foreground_figures([(c.foreground, c.alpha) for c in stills]),
    }
    for name, stage, gate, prompts in (
        ("base", "base", 0.0, moving),
        ("motion LoRA, gate 1", "motion", 1.0, moving),
        ("content LoRA, gate 1", "content", 1.0, new),
        ("content LoRA, gate 0", "content", 0.0, new),
    ):
        if not demo.stage_export(stage).is_dir():
            continue
        made = complete(
            open_model(demo.stage_export(stage)),
            prompts,
            [{}] * len(prompts),
            steps=said.generate_steps,
            seed=demo.manifest.seed,
            size=shape_of(demo),
            motion_gate=gate,
        )
        rows[name] = foreground_figures([(m["foreground"][..., :3], m["alpha"]) for m in made])
        texts = [f"drift {metrics.drift(m['alpha']):.2f} px/frame" for m in made]
        show(demo, f"generated with {name}", made, texts)
    kept = None
    if "base" in rows and "content LoRA, gate 0" in rows:
        kept = rows["content LoRA, gate 0"]["drift"] / max(rows["base"]["drift"], 1e-6)
    return {"rows": rows, "kept": kept}


def repeated(items: Sequence[Mapping[str, str]], count: int) -> list[dict[str, str]]:
    """``count`` items, from the start again where there are fewer."""
    return [dict(items[i % len(items)]) for i in range(count)]


def foreground_figures(layers: Sequence[tuple[U8, U8]]) -> dict[str, float]:
    """Means over clips: drift of the matte, red minus blue inside it (-1..1), its area."""
    drifts = [metrics.drift(alpha) for _, alpha in layers]
    hues = [
        float((f[..., 0].astype(np.float32) - f[..., 2])[a > 127].mean()) / 255
        for f, a in layers
        if (a > 127).any()
    ]
    return {
        "drift": float(np.mean(drifts)),
        "red_minus_blue": float(np.mean(hues)) if hues else float("nan"),
        "area": float(np.mean([(a > 127).mean() for _, a in layers])),
    }


TASKS: dict[str, tuple[str, ...]] = {
    "generate": (),
    "decompose": ("blended",),
    "fg2bg": ("foreground",),
    "bg2fg": ("background",),
}


def sample_tasks(demo: Demo) -> list[Path]:
    """All four tasks on one held-out clip, as ``layerflow sample`` does them."""
    from layerflow.media.cells import encode_preview, write_prores4444
    from layerflow.model.sample import SampleRequest, run_sample

    clip = load_clips(demo, "held-out", 1)[0]
    folder = demo.out / "samples"
    inputs = folder / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    for layer in ("background", "blended"):
        data = encode_preview(clip.layer(layer), clip.fps, crf=4)
        (inputs / f"{layer}.mp4").write_bytes(data)
    cutout = np.concatenate([clip.foreground, clip.alpha[..., None]], axis=3)
    write_prores4444(inputs / "foreground.mov", cutout, clip.fps)
    files = {
        "foreground": inputs / "foreground.mov",
        "background": inputs / "background.mp4",
        "blended": inputs / "blended.mp4",
    }
    said = demo.manifest.measure
    made = []
    for name, layers in TASKS.items():
        request = SampleRequest(
            model=demo.export,
            out=folder / name,
            given={layer: files[layer] for layer in layers},
            prompt={layer: clip.prompts[layer] for layer in PROMPTED if clip.prompts.get(layer)},
            seed=demo.manifest.seed,
            id=name,
            fps=clip.fps,
            steps=said.decompose_steps if name == "decompose" else said.generate_steps,
            guidance=1.0,
        )
        made += run_sample(request, quiet=True)
    return made
