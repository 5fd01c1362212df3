"""Whether a network takes clips apart into two foregrounds, and loses nothing with one.

    python bench/two_foregrounds.py [--seeds 0 1 2] [--out build/two-foregrounds]

The tiny preset's network on clips of `bench/two_movers.py`, decomposition alone:

- first: layers rgba, on clips with one mover;
- one: the same network goes on with such clips;
- two: the same network with its layers widened to rgbax2 goes on for as many steps, two thirds of
  its clips with two movers, the rest with one.

Held-out clips are taken apart by 4 steps. `one` says how much the second foreground costs the
first. Baselines are thresholds of one feature, cut in two by components or hue and sorted by size
or place; which is best is chosen on training clips, and for each foreground the best on the
held-out ones counts. What was interrupted goes on where it was; figures go to
OUT/two-foregrounds.json. About 4 minutes a seed on an idle core.
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
from two_baselines import baselines, mean_iou
from two_movers import FRAMES, MOVERS, SIDE, draw_movers

from layerflow.clip import BLENDED, on_grey, to_float
from layerflow.files import write_json
from layerflow.layer_set import LayerSet, layer_set
from layerflow.model.autoencoder import BlockDCTAutoencoder, decode, encode
from layerflow.model.frames import straight_colour
from layerflow.model.from_base import make_scheduler
from layerflow.model.objective import layer_loss
from layerflow.model.presets import TINY, tiny_transformer
from manifests.train_stage import Optimizer
from trainer import checkpoint
from trainer.checkpoint import Position
from trainer.data import Batches, MixturePart, Shape
from trainer.order import Order
from trainer.stages import Trained

BATCH, LR, EMA = 8, 3e-3, 0.98
CLIPS, HELD_OUT, SAMPLER_STEPS = 2000, 64, 4
RUNS = {  # run -> layers, what it starts from, steps, weights of clips with one and two movers
    "first": ("rgba", None, 600, (1.0,)),
    "one": ("rgba", "first", 700, (1.0,)),
    "two": ("rgbax2", "first", 700, (1.0, 2.0)),
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
        text = np.zeros((len(self.layers) // 2 + 1, 1, TEXT["text_width"]), np.float32)
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
        model.load_state_dict(widened(load_file(folder / f"{origin}.safetensors"), layers))
    file = folder / f"{run}.safetensors"
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    used = sources[: len(weights)]
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
        prompts=len(layers.prompted),
    )
    batches, scheduler = Batches(parts, order, layers=layers), make_scheduler("ddim")
    trained = Trained(model, [n for n, _ in model.named_parameters()], EMA)
    optimizer = trained.optimizer(Optimizer())
    begin = (checkpoint.restore(folder, run, trained, optimizer) or Position()).step
    losses = []
    for step in range(begin, steps):
        trained.zero_grad()
        for batch in batches.step(step):
            loss = layer_loss(model, scheduler, *batch.tensors(), layers=batch.layers).sum() / BATCH
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


def widened(state: dict[str, torch.Tensor], layers: LayerSet) -> dict[str, torch.Tensor]:
    """The rows of an rgba network's layers, and zeros for new ones."""
    old = layer_set("rgba")
    state = dict(state)
    for name in ("video", "given", "text"):
        rows = state[f"layer_embedding.{name}"]
        before, now = (s.prompted if name == "text" else s.layers for s in (old, layers))
        new = torch.zeros(len(now), rows.shape[1])
        for index, layer in enumerate(now):
            if layer in before:
                new[index] = rows[before.index(layer)]
        state[f"layer_embedding.{name}"] = new
    return state


@torch.no_grad()
def decompose(model: Any, source: Movers) -> dict[str, NDArray[np.float32]]:
    """Layers of all clips of a source from their blended video, ``[N, T, H, W, 3]`` in [-1, 1]."""
    scheduler = make_scheduler("ddim")
    scheduler.set_timesteps(SAMPLER_STEPS)
    layers, count = source.layers, len(source)
    clean = torch.from_numpy(np.stack([source.latents(i) for i in range(count)]))
    clean = clean.transpose(2, 3).flatten(1, 2)
    layout = model.layout(FRAMES * len(layers), layers)
    given = torch.tensor([[layer == BLENDED for layer in layers]] * count)
    held = given.repeat_interleave(FRAMES, 1)[..., None, None, None]
    x = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(count, len(layout.prompts), TEXT["text_width"])
    for t in scheduler.timesteps:
        x = torch.where(held, clean, x)
        v = model(x, text, t.expand(count), given=given, layout=layout, return_dict=False)[0]
        x = scheduler.step(v, t, x, return_dict=False)[0]
    parts = {name: decode(source.vae, x[:, place]) for name, place in layout.slices.items()}
    return {name: part.permute(0, 2, 3, 4, 1).numpy() for name, part in parts.items()}


def measure(model: Any, source: Movers) -> dict[str, float]:
    """Mean alpha IoU of each foreground; with two, also how often the order is right.

    That is judged where the true mattes overlap: what is seen there must be nearer to the colour of
    the second foreground than to that of the first.
    """
    made = decompose(model, source)
    mattes = {
        layer: made[MOVERS.mattes[layer]].mean(-1) for layer in MOVERS.foregrounds[: source.count]
    }
    clips = [source.clip(i) for i in range(len(source))]
    found = {
        f"{layer}, {source.count} movers": mean_iou(
            [matte > 0 for matte in mattes[layer]],
            [clip[MOVERS.mattes[layer]] > 127 for clip in clips],
        )
        for layer in mattes
    }
    if source.count == 2:
        right = []
        for i, clip in enumerate(clips):
            both = np.logical_and(*(clip[MOVERS.mattes[layer]] > 127 for layer in mattes))
            back, front = (
                np.abs(
                    straight_colour(made[layer][i], np.clip((m[i] + 1) / 2, 0, 1))[both]
                    - to_float(clip[BLENDED])[both]
                ).mean()
                for layer, m in mattes.items()
            )
            right.append(front < back)
        found["order right"] = float(np.mean(right))
    return found


def summarise(out: Path) -> None:
    """Figures of all seeds that are done: two-foregrounds.json and a table."""
    seeds = [json.loads(path.read_text()) for path in sorted(out.glob("seed-*/result.json"))]
    write_json(out / "two-foregrounds.json", {"seeds": seeds})
    for seed in seeds:
        print(json.dumps(seed, indent=2))


if __name__ == "__main__":
    main()
