"""Whether a network takes clips apart into two foregrounds, and loses nothing with one.

    python bench/toy/two_foregrounds.py [--seeds 0 1 2] [--out build/two-foregrounds]

The tiny preset's network on clips of `bench/toy/two_movers.py`, decomposition alone:

- first: layers rgba, on clips with one mover;
- one: the same network goes on with such clips;
- two: the same network with its layers widened to rgbax2 goes on for longer, two thirds of its
  clips with two movers, the rest with one.

Held-out clips are taken apart by 4 steps. `one` says how much the second foreground costs the
first. Baselines are thresholds of one feature, chosen on training clips, cut in two by components
or hue and sorted by size or place; for each foreground the best on the held-out clips counts. What
was interrupted goes on where it was; figures go to OUT/two-foregrounds.json. A seed takes 17 CPU
minutes: docs/benchmarks/foregrounds.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from two_baselines import baselines
from two_movers import FRAMES, MOVERS, SIDE, draw_movers

from layerflow.clip import BLENDED, on_grey, to_float
from layerflow.evaluation.foregrounds import order_score
from layerflow.evaluation.metrics import alpha_iou
from layerflow.files import write_json
from layerflow.layer_set import layer_set, prompted_of
from layerflow.model.autoencoder import BlockDCTAutoencoder, encode
from layerflow.model.cogvideox.from_base import make_scheduler
from layerflow.model.cogvideox.noise import VPrediction
from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
from layerflow.model.cogvideox.presets import TINY, tiny_transformer
from layerflow.model.objective import layer_loss
from layerflow.model.other_layers import with_rows_of
from manifests.train_stage import Optimizer
from trainer import checkpoint
from trainer.checkpoint import Position
from trainer.data import Batches, MixturePart, Shape
from trainer.order import Order
from trainer.stages import Trained

BATCH, LR, EMA = 8, 3e-3, 0.98
CLIPS, HELD_OUT, SAMPLER_STEPS = 2000, 64, 4
RUNS = {  # run -> layers, what it starts from, steps, weights of clips with one and two movers
    "first": ("rgba", None, 1700, (1.0,)),
    "one": ("rgba", "first", 1300, (1.0,)),
    "two": ("rgbax2", "first", 2400, (1.0, 2.0)),
}
TEXT = {"num_text_tokens": 1, "text_width": 8}  # there are no prompts
OPTIONS = {**TINY, **TEXT, "height": SIDE, "width": SIDE, "num_frames": FRAMES}


class Movers:
    """Clips drawn on demand and kept, as a source of latents."""

    def __init__(self, vae: BlockDCTAutoencoder, count: int, clips: int, seed: int) -> None:
        self.vae, self.layers = vae, MOVERS.with_foregrounds(count)
        self.count, self.clips, self.seed = count, clips, seed
        self.kept: dict[int, NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return self.clips

    def clip(self, index: int) -> dict[str, NDArray[np.uint8]]:
        return draw_movers(self.count, np.random.default_rng([self.seed, self.count, index]))

    def latents(self, index: int) -> NDArray[np.float32]:
        """``[n, C, f, h, w]``."""
        if index not in self.kept:
            clip = self.clip(index)
            pixels = np.stack([network_pixels(clip, layer) for layer in self.layers])
            mean, _ = encode(self.vae, torch.from_numpy(pixels).permute(0, 4, 1, 2, 3))
            self.kept[index] = mean.transpose(1, 2).numpy()
        return self.kept[index]

    def item(self, index: int) -> dict[str, Any]:
        mean = self.latents(index)
        text = np.zeros((len(prompted_of(self.layers)), 1, TEXT["text_width"]), np.float32)
        moments = np.concatenate([mean, np.full_like(mean, -30.0)], 1)
        return {"layers": self.layers, "moments": moments, "prompt_embeds": text}


def network_pixels(clip: dict[str, NDArray[np.uint8]], layer: str) -> NDArray[np.float32]:
    """A layer as the network sees it, ``[T, H, W, 3]`` in [-1, 1]."""
    if clip[layer].ndim == 3:
        return np.repeat(to_float(clip[layer])[..., None], 3, -1)
    if layer in MOVERS.mattes:
        return on_grey(clip[layer], clip[MOVERS.mattes[layer]]).astype(np.float32)
    return to_float(clip[layer])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("build/two-foregrounds"))
    parser.add_argument("--shorten", type=int, default=1, help="divide all step counts: to try it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        folder = options.out / f"seed-{seed}"
        if not (folder / "result.json").is_file():
            run_seed(folder, seed, options.shorten)
        summarise(options.out)


def run_seed(folder: Path, seed: int, shorten: int) -> None:
    """Train all runs and measure them; skips what is there."""
    vae = BlockDCTAutoencoder(*(OPTIONS[n] for n in ("block_size", "luma_bands", "chroma_bands")))
    training = [Movers(vae, count, CLIPS, seed) for count in (1, 2)]
    held_out = [Movers(vae, count, HELD_OUT, 1000 + seed) for count in (1, 2)]
    result: dict[str, Any] = {"seed": seed}
    for run in RUNS:
        started = time.process_time()
        model = train(folder, run, training, seed, shorten)
        result[f"{run} cpu minutes"] = (time.process_time() - started) / 60
        sources = held_out if RUNS[run][0] == "rgbax2" else held_out[:1]
        result[run] = {key: v for source in sources for key, v in measure(model, source).items()}
        print(f"seed {seed} {run}: {result[run]}", flush=True)
    clips = [
        [m.clip(i) for i in range(n)] for m, n in ((training[1], 200), (held_out[1], HELD_OUT))
    ]
    result["baselines"] = baselines(*clips)
    write_json(folder / "result.json", result)


def train(folder: Path, run: str, sources: Sequence[Movers], seed: int, shorten: int) -> Any:
    """The network of a run; continues from its last checkpoint."""
    name, origin, steps, weights = RUNS[run]
    layers, steps = layer_set(name), max(2, steps // shorten)
    torch.manual_seed(seed)
    model = tiny_transformer({**OPTIONS, "layers": name}, channels=27)
    if origin:
        before = layer_set(RUNS[origin][0])
        state = load_file(folder / f"{origin}.safetensors")
        model.load_state_dict(with_rows_of(state, before, layers))
    file = folder / f"{run}.safetensors"
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    used, process = sources[: len(weights)], VPrediction(make_scheduler("ddim"))
    parts = [
        MixturePart(s, range(len(s)), [Shape(FRAMES, SIDE // 8, SIDE // 8, s.layers)] * len(s))
        for s in used
    ]
    order = Order(
        seed=seed,
        stage=run,
        batch=BATCH,
        sizes=[len(source) for source in used],
        weights=weights,
        tasks={"decompose": 1.0},
        timesteps=process.timesteps,
        prompts=len(layers.prompted),
    )
    batches = Batches(parts, order, layers=layers)
    trained = Trained(model, [n for n, _ in model.named_parameters()], EMA)
    optimizer = trained.optimizer(Optimizer())
    begin = (checkpoint.restore(folder, run, trained, optimizer) or Position()).step
    losses = []
    for step in range(begin, steps):
        trained.zero_grad()
        for batch in batches.step(step):
            losses_of = layer_loss(model, process, *batch.tensors(), layers=batch.layers)
            loss = losses_of.sum() / BATCH
            loss.backward()
            trained.loss += loss.detach()
        trained.clip(1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 30) * (1 - step / steps) ** 0.7
        optimizer.step()
        trained.update_average(torch.zeros(1), torch.tensor(float(step)))
        losses.append(float(trained.loss))
        if (step + 1) % 100 == 0:
            checkpoint.save(folder, run, trained, optimizer, Position(step + 1), keep=1)
            print(f"seed {seed} {run} {step + 1}: loss {np.mean(losses[-100:]):.4f}", flush=True)
    trained.hand_on()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, file)
    return model.eval()


def measure(model: Any, source: Movers) -> dict[str, float]:
    """Means over a source's clips, taken apart from their blended video: alpha IoU of each
    foreground; with two, the share of overlapping pixels where the right one is in front
    (``order_score``), and of clips where that is most of them."""
    pipe = LayerFlowPipeline(None, None, source.vae, model, make_scheduler("ddim"))
    pipe.set_progress_bar_config(disable=True)
    clips = [source.clip(i) for i in range(len(source))]
    made = pipe(
        given=[{BLENDED: clip[BLENDED]} for clip in clips],
        foregrounds=source.count,
        num_inference_steps=SAMPLER_STEPS,
        guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(clips))],
        output_type="uint8",
    )
    names = MOVERS.foregrounds[: source.count]
    mattes = {layer: made[MOVERS.mattes[layer]] for layer in names}
    truths = {layer: [clip[MOVERS.mattes[layer]] for clip in clips] for layer in names}
    found = {
        f"{layer}, movers {source.count}": float(
            np.mean([alpha_iou(*pair) for pair in zip(mattes[layer], truths[layer], strict=True)])
        )
        for layer in names
    }
    if source.count == 2:
        seen, true = (zip(*of.values(), strict=True) for of in (mattes, truths))
        scores = np.array([order_score(*pair) for pair in zip(seen, true, strict=True)])
        found["order, pixels"] = float(np.nanmean(scores))
        found["order, clips"] = float((scores[np.isfinite(scores)] > 0.5).mean())
    return found


def summarise(out: Path) -> None:
    """Figures of all seeds that are done: two-foregrounds.json and a table."""
    seeds = [json.loads(path.read_text()) for path in sorted(out.glob("seed-*/result.json"))]
    write_json(out / "two-foregrounds.json", {"seeds": seeds})
    for seed in seeds:
        print(json.dumps(seed, indent=2))


if __name__ == "__main__":
    main()
