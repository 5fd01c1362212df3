"""Whether the schedule does its job.

    python bench/toy/schedule.py [--seeds 0 1 2] [--out build/schedule]

Claim of the paper (never ablated there): a motion LoRA that has learnt "stand still" lets the
content stage learn a look from stills without unlearning motion. Here, at toy scale (0.94 M
parameters, 4 frames of 32x32, clips of `bench/toy/blobs.py`), with `manifests/schedule-check.yaml`:

- base: generates and decomposes moving clips;
- with: the motion stage on frozen clips, then the content stage on stills, both at gate 1;
- without: the same content stage straight on the base;
- one frame: the same again, but stills are not repeated in time.

All are sampled at gate 0 from the same noise. About 5 minutes a seed on an idle core. What was
interrupted goes on where it was. Figures go to OUT/schedule.json, pictures to OUT/plot.png and
OUT/seed-N/sheet.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blobs import FRAMES, MOVING, SIDE, STILL, Family, draw_clip
from schedule_plot import draw_plot

from layerflow.clip import LAYERS, PROMPTED, LayeredClip
from layerflow.corpus.fingerprint import model_fingerprint
from layerflow.corpus.latents import FORMAT_VERSION, LatentsWriter, clip_row
from layerflow.evaluation import metrics
from layerflow.files import write_json
from layerflow.media.contact_sheet import save_sheet
from layerflow.model import adapters, frames
from layerflow.model.autoencoder import BlockDCTAutoencoder, decode_layers, encode_clips
from layerflow.model.base import base_of
from layerflow.model.presets import init_directory
from layerflow.model.sample import load_pipeline
from manifests.train import TrainManifest, load, parse
from trainer.distributed.launch import launch

MANIFEST = Path(__file__).parents[2] / "manifests" / "schedule-check.yaml"
BATCH = 32
SHOWN = 4  # clips of each arm on the contact sheet

RUNS: dict[str, tuple[str, str, int | None]] = {
    "base": ("base", "model", None),
    "motion": ("motion", "base/export", None),
    "with": ("content", "motion/export", None),
    "without": ("content", "base/export", None),
    "one-frame": ("content", "base/export", 1),
}
"""What is trained: run -> stage of the manifest, model that it starts from, and the frames to which
stills are repeated where that differs from the manifest."""

ARMS: dict[str, tuple[str, float]] = {
    "base": ("base", 0.0),
    "motion LoRA, gate 1": ("motion", 1.0),
    "motion LoRA, gate 0": ("motion", 0.0),
    "with motion LoRA": ("with", 0.0),
    "with motion LoRA, gate left at 1": ("with", 1.0),
    "without motion LoRA": ("without", 0.0),
    "without, stills as one frame": ("one-frame", 0.0),
}
"""What is sampled: name -> run, and the motion gate."""

CONTENT_ARMS = list(ARMS)[3:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("build/schedule"))
    parser.add_argument("--clips", type=int, default=4000, help="moving clips; a quarter of stills")
    parser.add_argument("--samples", type=int, default=64, help="clips sampled from each arm")
    parser.add_argument("--preset", default="tiny", help="tiny, or tiny-wan")
    parser.add_argument("--shorten", type=int, default=1, help="divide all step counts: to try it")
    options = parser.parse_args()
    for seed in options.seeds:
        folder = options.out / f"seed-{seed}"
        if not (folder / "result.json").is_file():
            run_seed(folder, seed, options)
        summarise(options.out)


def run_seed(folder: Path, seed: int, options: argparse.Namespace) -> None:
    """Draw, train all arms and measure them; skips what is there."""
    started, clips, samples = time.time(), options.clips, options.samples
    torch.set_num_threads(1)
    if not (folder / "model").is_dir():
        init_directory(folder / "model", options.preset, seed=seed)
    for name, family, count in (("video", MOVING, clips), ("stills", STILL, clips // 4)):
        if not (folder / "latents" / name).is_dir():
            write_latents(folder, name, family, count, seed)
    train_arms(folder, seed, options.shorten)
    arms, shown, base = {}, {}, {}
    for arm, (run, gate) in ARMS.items():
        latents, made = sample(folder / run / "export", samples, gate)
        arms[arm] = scores(made)
        shown[arm] = made[:SHOWN]
        base.setdefault("latents", latents)
        arms[arm]["largest_difference_from_base"] = float((latents - base["latents"]).abs().max())
    rng = np.random.default_rng([seed, 7])
    vae = load_pipeline(folder / "model").vae
    for arm, family in (("moving clips", MOVING), ("stills", STILL)):
        real = [through(vae, draw_clip(family, rng)) for _ in range(samples)]
        arms[arm] = scores(real)
        shown[arm] = real[:SHOWN]
    order = ("moving clips", "stills", *ARMS)
    rows = [(f"{arm}", clip) for arm in order for clip in shown[arm]]
    save_sheet(
        folder / "sheet.png",
        [clip for _, clip in rows],
        [f"{label}   drift {metrics.drift(clip.alpha):.2f} px/frame" for label, clip in rows],
        columns_per_layer=4,
        height=48,
    )
    minutes = (time.time() - started) / 60
    write_json(folder / "result.json", {"seed": seed, "arms": arms, "minutes": minutes})


def write_latents(folder: Path, name: str, family: Family, count: int, seed: int) -> None:
    """A latents folder of freshly drawn clips, without prompts."""
    pipe = load_pipeline(folder / "model")
    rng = np.random.default_rng([seed, len(name)])

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(count):
            clip = draw_clip(family, rng)
            prompts = dict.fromkeys((f"{p}_prompt" for p in PROMPTED), "")
            yield clip_row(
                dict(zip(LAYERS, encode_clips(pipe.vae, [clip])[0], strict=True)),
                dtype="float16",
                id=f"{name}-{index}",
                source=f"{name}-{index}",
                content=f"{seed}-{index}",
                kind=clip.kind,
                alpha_kind=clip.alpha_kind,
                origin_group=str(index),
                num_frames=clip.num_frames,
                height=SIDE,
                width=SIDE,
                fps=8.0,
                **prompts,
            )

    config = pipe.transformer.config
    about = {
        **model_fingerprint(folder / "model"),
        "format_version": FORMAT_VERSION,
        "text_shape": list(base_of(pipe.transformer).text_shape(config)),
    }
    with LatentsWriter(folder / "latents" / name, about) as writer:
        writer.clips(rows())


def train_arms(folder: Path, seed: int, shorten: int) -> None:
    """All `RUNS`, each a run of the trainer that goes on where it was."""
    for run in RUNS:
        manifest = arm_manifest(folder, seed, shorten, run)
        say = lambda text, run=run: print(f"seed {seed} {run}: {text}", flush=True)  # noqa: E731
        if not launch(manifest, log=say):
            raise SystemExit(143)


def arm_manifest(folder: Path, seed: int, shorten: int, run: str) -> TrainManifest:
    """The manifest of one run: one of the stages, from another model, all else equal."""
    name, model, frames = RUNS[run]
    whole = load(MANIFEST)
    stage = whole.stage(name).model_dump(mode="json")
    stage["steps"] = max(1, stage["steps"] // shorten)
    stage["schedule"]["warmup"] //= shorten
    if frames is not None:
        for component in stage["mixture"]:
            component["frames"] = frames
    latents = {name: str(folder / "latents" / name) for name in whole.latents}
    changes = {"model": str(folder / model), "out": str(folder / run), "seed": seed}
    document = whole.model_dump(mode="json") | changes
    return parse(document | {"latents": latents, "stages": [stage]})


def sample(model: Path, count: int, gate: float) -> tuple[torch.Tensor, list[LayeredClip]]:
    """Latents `[count, 4, f, C, h, w]` and clips, generated from nothing; sample i from seed i."""
    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    parts, clips = [], []
    for start in range(0, count, BATCH):
        seeds = range(start, min(count, start + BATCH))
        with adapters.motion_gate(pipe.transformer, torch.full((len(seeds),), gate)):
            made = pipe(
                prompt=[{} for _ in seeds],
                height=SIDE,
                width=SIDE,
                num_frames=FRAMES,
                num_inference_steps=16,
                guidance_scale=1.0,
                generator=[torch.Generator().manual_seed(s) for s in seeds],
                output_type="latent",
            )
        latents = torch.stack([made[layer] for layer in LAYERS], 1)
        parts.append(latents)
        clips += [shown(pipe.vae, one) for one in latents]
    return torch.cat(parts), clips


def through(vae: BlockDCTAutoencoder, clip: LayeredClip) -> LayeredClip:
    """A real clip as the autoencoder gives it back, so that samples are compared with what they
    could be at best; a still is repeated."""
    moments = torch.from_numpy(encode_clips(vae, [clip])[0])
    latents = moments.chunk(2, dim=1)[0].transpose(1, 2)
    return shown(vae, latents.expand(-1, FRAMES, -1, -1, -1))


def shown(vae: BlockDCTAutoencoder, latents: torch.Tensor) -> LayeredClip:
    """Latents `[4, f, C, h, w]` as a clip; colour is divided by the matte."""
    layers = {name: pixels[None] for name, pixels in decode_layers(vae, latents).items()}
    done = {k: frames.convert(v, "uint8")[0] for k, v in frames.finish(layers, None).items()}
    return LayeredClip(
        np.ascontiguousarray(done["foreground"][..., :3]),
        np.asarray(done["alpha"]),
        np.asarray(done["background"]),
        np.asarray(done["blended"]),
    )


def scores(clips: Sequence[LayeredClip]) -> dict[str, float]:
    """Means over clips.

    drift: net motion of the matte, pixels a frame. hue: red minus blue inside the matte, -1..1:
    how much of the new look. soft: share of the visible matte that is neither clear nor opaque.
    """
    hues, softs = [], []
    for clip in clips:
        inside = clip.alpha > 127
        if inside.any():
            colour = clip.foreground.astype(np.float32)
            hues.append(float((colour[..., 0] - colour[..., 2])[inside].mean()) / 255)
        visible = clip.alpha > 0.15 * 255
        if visible.any():
            softs.append(float((clip.alpha[visible] < 0.85 * 255).mean()))
    return {
        "drift": float(np.mean([metrics.drift(clip.alpha) for clip in clips])),
        "hue": float(np.mean(hues)) if hues else float("nan"),
        "soft": float(np.mean(softs)) if softs else float("nan"),
        "empty": 1 - len(hues) / len(clips),
    }


def summarise(out: Path) -> dict[str, Any]:
    """Figures of all seeds that are done, with their spread: schedule.json, plot.png, a table."""
    found = sorted(out.glob("seed-*/result.json"))
    seeds = [json.loads(path.read_text()) for path in found]
    summary: dict[str, Any] = {"seeds": seeds, "kept": {}, "look": {}}
    for arm in CONTENT_ARMS:
        arms = [seed["arms"] for seed in seeds]
        summary["kept"][arm] = [a[arm]["drift"] / a["base"]["drift"] for a in arms]
        summary["look"][arm] = [
            (a[arm]["hue"] - a["base"]["hue"]) / (a["stills"]["hue"] - a["base"]["hue"])
            for a in arms
        ]
    zero = [seed["arms"]["motion LoRA, gate 0"]["largest_difference_from_base"] for seed in seeds]
    summary["motion LoRA at gate 0, largest difference of any latent from the base"] = max(zero)
    write_json(out / "schedule.json", summary)
    draw_plot(out / "plot.png", summary)
    print_table(seeds, summary)
    return summary


def print_table(seeds: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    numbers = ", ".join(str(seed["seed"]) for seed in seeds)
    print(f"\nmeans over clips, one column a seed ({numbers})")
    for arm in ("moving clips", "stills", *ARMS):
        row = [seed["arms"][arm] for seed in seeds]
        cells = "   ".join(
            f"{name} " + " ".join(f"{r[name]:6.2f}" for r in row)
            for name in ("drift", "hue", "soft")
        )
        print(f"{arm:34}{cells}")
    for title, table in (
        ("share of the base's drift kept", "kept"),
        ("share of the new look reached", "look"),
    ):
        for arm, values in summary[table].items():
            each = " ".join(f"{value:.2f}" for value in values)
            print(f"{title}, {arm}: {each}; mean {np.mean(values):.2f}, s.d. {np.std(values):.2f}")
    print(
        "motion LoRA at gate 0: largest difference from the base:",
        max(seed["arms"]["motion LoRA, gate 0"]["largest_difference_from_base"] for seed in seeds),
    )


if __name__ == "__main__":
    main()
