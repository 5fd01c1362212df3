"""Whether leaving out what nobody saw helps.

    python bench/toy/known_mask.py [--seeds 0 1] [--pasted 0.3] [--out build/known-mask]

Subjects of `bench/toy/blobs.py` before striped walls, as mining would give them: the matte is
right, but the background is the clean plate of `pipelines/vision/plate.py`, so what no other frame
showed is inpainted, wrongly, and the mask of the column `known` says where. Seven of ten subjects
stay where they are, and all that they hide is made up; the others show about half of it. With them,
in a share of the draws, pasted clips of the same kind, whose background is true. The tiny model (2
frames of 32x32) learns to give the background, from the video and the subject, in runs of equal
steps, clips, noise and start:

- `unmasked`: what was made up is taken for the truth;
- `masked`: `mask: known`;
- `pasted alone`: without the mined clips.

Measured is the PSNR of the background in the hole against the truth, on clips that no run saw, of
subjects that stay and of those that move on. With `--pasted 0` there are no pasted clips: then
nothing teaches the masked run what lies behind a subject that stays. What was interrupted goes on
where it was. Figures go to OUT/known-mask.json, pictures to OUT/seed-N/sheet.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blobs import MOVING, SIDE, Family, draw_clip, vivid

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, LAYERS, PROMPTED, LayeredClip
from layerflow.corpus.fingerprint import model_fingerprint
from layerflow.corpus.latents import FORMAT_VERSION, LatentsWriter, clip_row
from layerflow.files import write_json
from layerflow.media.contact_sheet import save_sheet
from layerflow.media.known import latent_known
from layerflow.model.autoencoder import encode_clips
from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
from layerflow.model.presets import init_directory
from manifests.train import TrainManifest, parse
from pipelines.mine.known import known_pixels
from pipelines.vision.plate import clean_plate
from pipelines.vision.registration import Registration
from trainer.distributed.launch import launch

FRAMES = 2
STAYS = replace(MOVING, speed=(0.0, 1.0), frames=FRAMES)
MOVES = replace(MOVING, speed=(9.0, 13.0), frames=FRAMES)
STAYING = 0.7  # share of the clips
GIVEN = (FOREGROUND, ALPHA, BLENDED)
RUNS = {"unmasked": None, "masked": "known", "pasted alone": None}
"""Run -> the stage's `mask`."""
STILL_CAMERA = Registration(np.tile(np.eye(3), (FRAMES, 1, 1)), FRAMES // 2, 0.0, 1.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("build/known-mask"))
    parser.add_argument("--pasted", type=float, default=0.3, help="share of pasted clips")
    parser.add_argument("--clips", type=int, default=1000, help="mined ones; 3 of 10 pasted ones")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--samples", type=int, default=32, help="held-out clips of each kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        folder = options.out / f"seed-{seed}"
        if not (folder / "model").is_dir():
            shape: dict[str, Any] = {"num_frames": FRAMES, "num_text_tokens": 1}
            init_directory(folder / "model", "tiny", seed=seed, **shape)
        write_latents(folder, "coarse", options.clips, seed)
        write_latents(folder, "pasted", options.clips * 3 // 10, seed)
    runs = [run for run in RUNS if options.pasted or run != "pasted alone"]
    for run in runs:
        for seed in options.seeds:
            folder = options.out / f"seed-{seed}"
            say = lambda text, at=f"seed {seed} {run}": print(f"{at}: {text}", flush=True)  # noqa: E731
            if not launch(run_manifest(folder, seed, options.steps, run, options.pasted), log=say):
                raise SystemExit(143)
    for seed in options.seeds:
        measure(options.out / f"seed-{seed}", seed, options.samples, runs)
    summarise(options.out)


def measure(folder: Path, seed: int, samples: int, runs: Sequence[str]) -> None:
    """Figures and pictures of the runs of a seed: result.json and sheet.png."""
    rng = np.random.default_rng([seed, 7])
    held = {
        "stay": [drawn(STAYS, rng) for _ in range(samples)],
        "move": [drawn(MOVES, rng) for _ in range(samples)],
    }
    found: dict[str, dict[str, float]] = {}
    rows: list[tuple[str, LayeredClip]] = []
    for kind, truths in held.items():
        made = {run: backgrounds(folder / run / "export", truths) for run in runs}
        made["made up by mining"] = [mined(clip)[0].background for clip in truths]
        for run, pictures in made.items():
            found.setdefault(run, {})[kind] = psnr_in_holes(pictures, truths)
            shown = zip(pictures[:2], truths[:2], strict=True)
            rows += [(f"{kind}, {run}", replace(clip, background=one)) for one, clip in shown]
    save_sheet(
        folder / "sheet.png",
        [clip for _, clip in rows],
        [label for label, _ in rows],
        columns_per_layer=FRAMES,
        height=48,
    )
    write_json(folder / "result.json", {"seed": seed, "psnr": found})


def psnr_in_holes(pictures: Sequence[np.ndarray], truths: Sequence[LayeredClip]) -> float:
    """PSNR of backgrounds, dB, over the holes of all clips together."""
    errors = [
        (picture.astype(np.float64) - clip.background)[clip.alpha > 127]
        for picture, clip in zip(pictures, truths, strict=True)
    ]
    return float(10 * np.log10(255**2 / np.square(np.concatenate(errors)).mean()))


def drawn(family: Family, rng: np.random.Generator) -> LayeredClip:
    """A clip with true layers, before a striped wall."""
    clip = draw_clip(family, rng)
    whole = replace(clip, background=np.repeat(wall(rng)[None], FRAMES, axis=0))
    return replace(whole, blended=whole.recomposed())


def wall(rng: np.random.Generator) -> np.ndarray:
    """Hard stripes of two colours, upright or level, uint8 [SIDE, SIDE, 3]: what lies behind a
    subject follows from what is beside it, but not by smooth continuation."""
    colours = [vivid(rng.random(), rng) * rng.uniform(*light) for light in ((0.6, 1), (0.2, 0.6))]
    phase, period = rng.uniform(0, 2 * np.pi), rng.uniform(6, 14)
    wave = np.sin(2 * np.pi * (np.arange(SIDE) + 0.5) / period + phase)
    stripes = np.broadcast_to(np.where(wave[:, None] > 0, *colours), (SIDE, SIDE, 3))
    stripes = stripes if rng.random() < 0.5 else stripes.swapaxes(0, 1)
    return np.rint(stripes * 255).astype(np.uint8)


def mined(clip: LayeredClip) -> tuple[LayeredClip, np.ndarray]:
    """The clip with the background that mining finds, and the levels of what is known."""
    plate = clean_plate(clip.blended, clip.alpha, registration=STILL_CAMERA)
    coarse = replace(clip, kind="mined", background=plate.background)
    return coarse, known_pixels(clip.blended, clip.foreground, clip.alpha, plate)


def write_latents(folder: Path, name: str, count: int, seed: int) -> None:
    """A latents folder of mined (`coarse`) or pasted clips, unless it is there."""
    place = folder / "latents" / name
    if place.is_dir():
        return
    pipe = LayerFlowPipeline.from_pretrained(folder / "model")
    rng = np.random.default_rng([seed, 1 if name == "coarse" else 2])
    prompts: dict[str, Any] = dict.fromkeys((f"{p}_prompt" for p in PROMPTED), "")
    side = pipe.vae.spatial_compression_ratio

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(count):
            clip = drawn(STAYS if rng.random() < STAYING else MOVES, rng)
            mask = None
            if name == "coarse":
                clip, known = mined(clip)
                mask = latent_known(known, LAYERS, 1, side)
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
                **prompts,
            )

    config = pipe.transformer.config
    about = {
        **model_fingerprint(folder / "model"),
        "format_version": FORMAT_VERSION,
        "text_shape": [config.num_text_tokens, config.text_embed_dim],
    }
    with LatentsWriter(place, about) as writer:
        writer.clips(rows())


def run_manifest(folder: Path, seed: int, steps: int, run: str, pasted: float) -> TrainManifest:
    weights = {"coarse": 1 - pasted, "pasted": pasted}
    if run == "pasted alone":
        weights = {"pasted": 1.0}
    mixture = [{"latents": name, "weight": w} for name, w in weights.items() if w]
    stage = {
        "name": "base",
        "steps": steps,
        "lr": 3e-3,
        "schedule": {"warmup": 30, "decay": "power", "power": 0.7},
        "ema": 0.98,
        "trains": "full",
        "mixture": mixture,
        "tasks": {"+".join(GIVEN): 1.0},
        "mask": RUNS[run],
    }
    return parse(
        {
            "model": str(folder / "model"),
            "out": str(folder / run),
            "seed": seed,
            "batch": 8,
            "threads": 1,
            "log_every": 50,
            "save_every": 50,
            "keep_last": 1,
            "tensorboard": False,
            "latents": {name: str(folder / "latents" / name) for name in ("coarse", "pasted")},
            "dropout": {"joint": 0.0, "layer": 0.0},
            "stages": [stage],
        }
    )


def backgrounds(model: Path, clips: Sequence[LayeredClip]) -> list[np.ndarray]:
    """The background that a run's export gives each clip, uint8 [T, H, W, 3]."""
    pipe = LayerFlowPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        prompt=[{} for _ in clips],
        given=[{layer: clip.layer(layer) for layer in GIVEN} for clip in clips],
        num_inference_steps=8,
        guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(clips))],
        output_type="uint8",
    )
    return list(np.asarray(made[BACKGROUND]))


def summarise(out: Path) -> None:
    """Figures of all seeds that are done: known-mask.json, and a table."""
    seeds = [json.loads(path.read_text()) for path in sorted(out.glob("seed-*/result.json"))]
    write_json(out / "known-mask.json", {"seeds": seeds})
    for kind in ("stay", "move"):
        print(f"\nPSNR of the background in the hole, dB, subjects that {kind}, one column a seed")
        for run in seeds[0]["psnr"]:
            print(f"{run:20}" + " ".join(f"{seed['psnr'][run][kind]:7.2f}" for seed in seeds))


if __name__ == "__main__":
    main()
