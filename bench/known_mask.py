"""Whether leaving out what nobody saw helps.

    python bench/known_mask.py [--seeds 0 1] [--out build/known-mask]

Clips of `bench/blobs.py` before a still background, as mining would give them: the matte is right,
but the background is the clean plate of `pipelines/vision/plate.py`, so what no other frame showed
is made up, and the column `known` says where. Most subjects are slow, and nearly all of what they
hide is made up; the others move on far enough. The tiny model (0.94 M parameters, 4 frames of
32x32) learns to give the background, from the video and the subject, in three runs of equal steps,
clips, noise and start:

- `unmasked`: the made-up background is taken for the truth;
- `masked`: `mask: known`;
- `truth`: the same clips with their true background, as the most that can be had.

Measured is the PSNR of the background in the hole, on clips that no run saw, all with their true
background: of slow and of fast subjects. What was interrupted goes on where it was. Figures go to
OUT/known-mask.json, pictures to OUT/seed-N/sheet.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blobs import FRAMES, MOVING, SIDE, draw_clip

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, LAYERS, PROMPTED, LayeredClip
from layerflow.corpus.fingerprint import model_fingerprint
from layerflow.corpus.known import latent_known
from layerflow.corpus.latents import FORMAT_VERSION, LatentsWriter, clip_row
from layerflow.evaluation import metrics
from layerflow.files import write_json
from layerflow.media.contact_sheet import save_sheet
from layerflow.model.autoencoder import encode_clips
from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
from layerflow.model.presets import init_directory
from manifests.train import TrainManifest, parse
from pipelines.mine.known import known_pixels
from pipelines.vision.plate import clean_plate
from pipelines.vision.registration import Registration
from trainer.distributed.launch import launch

SLOW, FAST = replace(MOVING, speed=(0.0, 1.0)), replace(MOVING, speed=(5.0, 8.0))
SLOW_SHARE = 0.7
GIVEN = (FOREGROUND, ALPHA, BLENDED)
RUNS = {"unmasked": ("coarse", None), "masked": ("coarse", "known"), "truth": ("truth", None)}
"""Run -> its latents, and the stage's `mask`."""
BATCH = 32  # of clips that are sampled together
STILL_CAMERA = Registration(np.tile(np.eye(3), (FRAMES, 1, 1)), FRAMES // 2, 0.0, 1.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("build/known-mask"))
    parser.add_argument("--clips", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--samples", type=int, default=64, help="held-out clips of each speed")
    options = parser.parse_args()
    for seed in options.seeds:
        folder = options.out / f"seed-{seed}"
        if not (folder / "result.json").is_file():
            run_seed(folder, seed, options.clips, options.steps, options.samples)
    summarise(options.out)


def run_seed(folder: Path, seed: int, clips: int, steps: int, samples: int) -> None:
    """Draw, train the runs and measure them; skips what is there."""
    started = time.time()
    torch.set_num_threads(1)
    if not (folder / "model").is_dir():
        init_directory(folder / "model", "tiny", seed=seed)
    unseen = write_latents(folder, "coarse", clips, seed)
    write_latents(folder, "truth", clips, seed)
    for run in RUNS:
        say = lambda text, run=run: print(f"seed {seed} {run}: {text}", flush=True)  # noqa: E731
        if not launch(run_manifest(folder, seed, steps, run), log=say):
            raise SystemExit(143)
    rng = np.random.default_rng([seed, 7])
    held = {"slow": [drawn(SLOW, rng) for _ in range(samples)],
            "fast": [drawn(FAST, rng) for _ in range(samples)]}  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    rows: list[tuple[str, LayeredClip]] = []
    for speed, truths in held.items():
        made = {run: backgrounds(folder / run / "export", truths) for run in RUNS}
        made["made up by mining"] = [mined(clip)[0].background for clip in truths]
        for run, pictures in made.items():
            scores = [
                metrics.masked_psnr(picture, clip.background, clip.alpha > 127)
                for picture, clip in zip(pictures, truths, strict=True)
            ]
            found.setdefault(run, {})[speed] = float(np.mean(scores))
            shown = zip(pictures[:2], truths[:2], strict=True)
            rows += [(f"{speed} {run}", replace(clip, background=one)) for one, clip in shown]
    save_sheet(
        folder / "sheet.png",
        [clip for _, clip in rows],
        [label for label, _ in rows],
        columns_per_layer=4,
        height=48,
    )
    minutes = (time.time() - started) / 60
    write_json(
        folder / "result.json",
        {"seed": seed, "psnr": found, "unseen": unseen, "steps": steps, "minutes": minutes},
    )


def drawn(family: Any, rng: np.random.Generator) -> LayeredClip:
    """A clip with true layers, before a background that stands still."""
    clip = draw_clip(family, rng)
    still = np.repeat(clip.background[:1], FRAMES, axis=0)
    whole = replace(clip, background=still)
    return replace(whole, blended=whole.recomposed())


def mined(clip: LayeredClip) -> tuple[LayeredClip, np.ndarray]:
    """The clip with the background that mining finds, and the levels of what is known."""
    plate = clean_plate(clip.blended, clip.alpha, registration=STILL_CAMERA)
    coarse = replace(clip, kind="mined", background=plate.background)
    return coarse, known_pixels(clip.blended, clip.foreground, clip.alpha, plate)


def write_latents(folder: Path, name: str, count: int, seed: int) -> float:
    """A latents folder, unless it is there; returns the share of the background's cells in which
    something is made up."""
    place = folder / "latents" / name
    said = folder / "latents" / f"{name}.json"
    if said.is_file():
        return float(json.loads(said.read_text())["unseen"])
    pipe = LayerFlowPipeline.from_pretrained(folder / "model")
    rng = np.random.default_rng([seed, 1])
    side = pipe.vae.spatial_compression_ratio
    shares = []

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(count):
            clip = drawn(SLOW if rng.random() < SLOW_SHARE else FAST, rng)
            mask = None
            if name == "coarse":
                clip, known = mined(clip)
                mask = latent_known(known, LAYERS, 1, side)
                shares.append(1 - float(mask[LAYERS.index(BACKGROUND)].mean()))
            yield clip_row(
                dict(zip(LAYERS, encode_clips(pipe.vae, [clip])[0], strict=True)),
                dtype="float16",
                known=mask,
                id=f"{name}-{index}",
                source=f"{name}-{index}",
                content=f"{seed}-{index}",
                kind=clip.kind,
                alpha_kind=clip.alpha_kind,
                origin_group=str(index),
                num_frames=FRAMES,
                height=SIDE,
                width=SIDE,
                fps=8.0,
                **dict.fromkeys((f"{p}_prompt" for p in PROMPTED), ""),
            )

    config = pipe.transformer.config
    about = {
        **model_fingerprint(folder / "model"),
        "format_version": FORMAT_VERSION,
        "text_shape": [config.num_text_tokens, config.text_embed_dim],
    }
    with LatentsWriter(place, about) as writer:
        writer.clips(rows())
    unseen = float(np.mean(shares)) if shares else 0.0
    write_json(said, {"unseen": unseen})
    return unseen


def run_manifest(folder: Path, seed: int, steps: int, run: str) -> TrainManifest:
    latents, mask = RUNS[run]
    stage = {
        "name": "base",
        "steps": steps,
        "lr": 3e-3,
        "schedule": {"warmup": 30, "decay": "power", "power": 0.7},
        "ema": 0.98,
        "trains": "full",
        "mixture": [{"latents": latents}],
        "tasks": {"+".join(GIVEN): 1.0},
        "mask": mask,
    }
    return parse(
        {
            "model": str(folder / "model"),
            "out": str(folder / run),
            "seed": seed,
            "batch": 8,
            "threads": 1,
            "log_every": 50,
            "save_every": 100,
            "keep_last": 1,
            "tensorboard": False,
            "latents": {latents: str(folder / "latents" / latents)},
            "dropout": {"joint": 0.0, "layer": 0.0},
            "stages": [stage],
        }
    )


def backgrounds(model: Path, clips: Sequence[LayeredClip]) -> list[np.ndarray]:
    """The background that a run's export gives each clip, uint8 [T, H, W, 3]."""
    pipe = LayerFlowPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    out: list[np.ndarray] = []
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        made = pipe(
            prompt=[{} for _ in part],
            given=[{layer: clip.layer(layer) for layer in GIVEN} for clip in part],
            num_inference_steps=8,
            guidance_scale=1.0,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(part))],
            output_type="uint8",
        )
        out += list(np.asarray(made[BACKGROUND]))
    return out


def summarise(out: Path) -> None:
    """Figures of all seeds that are done: known-mask.json, and a table."""
    seeds = [json.loads(path.read_text()) for path in sorted(out.glob("seed-*/result.json"))]
    write_json(out / "known-mask.json", {"seeds": seeds})
    for speed in ("slow", "fast"):
        print(f"\nPSNR of the background in the hole, dB, {speed} subjects, one column a seed")
        for run in seeds[0]["psnr"]:
            print(f"{run:20}" + " ".join(f"{seed['psnr'][run][speed]:7.2f}" for seed in seeds))


if __name__ == "__main__":
    main()
