"""Whether the trainer, a base and its sampler fit one clip: the first thing to try with a new base.

    python bench/toy/overfit.py [--presets tiny tiny-wan] [--seed 0] [--out build/overfit]

One drawn clip, `manifests/overfit-one-clip.yaml`, then four samples from different noise. Printed
are the shares of the first loss that are left at the end (means of 20 steps), and the PSNR of the
samples against the clip as the autoencoder gives it back, over all layers. 4 CPU minutes a preset.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from blobs import FRAMES, MOVING, SIDE, draw_clip
from schedule import write_latents

from layerflow.clip import LAYERS
from layerflow.model.autoencoder import decode_layers, encode_clips
from layerflow.model.presets import init_directory
from layerflow.model.sample import load_pipeline
from manifests.train import load
from trainer import metrics
from trainer.distributed.launch import launch

MANIFEST = Path(__file__).parents[2] / "manifests" / "overfit-one-clip.yaml"
SAMPLES, SAMPLER_STEPS = 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["tiny", "tiny-wan"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/overfit"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for preset in options.presets:
        left, psnr = overfit(options.out / f"{preset}-{options.seed}", preset, options.seed)
        each = " ".join(f"{value:.1f}" for value in psnr)
        print(f"{preset}: {left:.1%} of the loss left; samples {each} dB, mean {np.mean(psnr):.1f}")


def overfit(folder: Path, preset: str, seed: int) -> tuple[float, list[float]]:
    """Share of the loss that is left, and the PSNR of each sample."""
    clip = draw_clip(MOVING, np.random.default_rng([seed, 0]))
    if not (folder / "model").is_dir():
        size = {"height": SIDE, "width": SIDE, "num_frames": FRAMES}
        init_directory(folder / "model", preset, seed=seed, **size)
    if not (folder / "latents" / "clip").is_dir():
        write_latents(folder, "clip", [clip], seed)
    manifest = load(
        MANIFEST,
        model=str(folder / "model"),
        out=str(folder / "train"),
        latents={"clip": str(folder / "latents" / "clip")},
        seed=seed,
        workers=1,
        threads=1,
        validation=None,
    )
    if not launch(manifest):
        raise SystemExit(143)
    losses = [row["loss"] for row in metrics.read(folder / "train" / "metrics.csv")]
    pipe = load_pipeline(folder / "train" / "export")
    pipe.set_progress_bar_config(disable=True)
    moments = torch.from_numpy(encode_clips(pipe.vae, [clip])[0])
    wanted = decode_layers(pipe.vae, moments.chunk(2, 1)[0].transpose(1, 2))
    made = pipe(
        prompt=[{}] * SAMPLES,
        height=SIDE,
        width=SIDE,
        num_frames=FRAMES,
        num_inference_steps=SAMPLER_STEPS,
        guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(index) for index in range(SAMPLES)],
        output_type="latent",
    )
    psnr = []
    for index in range(SAMPLES):
        layers = decode_layers(pipe.vae, torch.stack([made[layer][index] for layer in LAYERS]))
        error = np.mean([np.mean((layers[name] - wanted[name]) ** 2) for name in LAYERS])
        psnr.append(float(10 * np.log10(4 / error)))
    return float(np.mean(losses[-20:]) / np.mean(losses[:20])), psnr


if __name__ == "__main__":
    main()
