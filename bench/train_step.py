"""What the loop costs over the bare step, and what the loader could feed.

    python bench/train_step.py [--steps 200] [--threads 1] [--rounds 5] [--sizes]

On the tiny preset (0.94 M parameters, batch 8, 4 frames of 32x32), in one run:

- the bare step: forward, backward and optimizer of the same network on one batch in memory;
- the loop: `trainer.loop` with loader, metrics, average and checks, as `layerflow train` runs it;
- the loader: clips a second in one process, ours, `datasets` and WebDataset (`pip install
  webdataset`; left out where absent) on the same latents, each up to float32 arrays of moments and
  prompt embeddings.

With `--sizes` instead: steps over latents of three sizes, in turns with a fixed batch of 8 clips
and with a token budget of as many tokens as these have on average.

Blocks of steps of the loop and of the bare step take turns, and so do the loaders, so that a busy
machine disturbs all alike. Printed are medians, and the medians of the paired ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerflow.clip import LAYERS, PROMPTED
from layerflow.corpus.latents import (
    FORMAT_VERSION,
    Latents,
    LatentsWriter,
    clip_row,
    prompt_key,
    prompt_row,
)
from layerflow.model.base import base_of
from layerflow.model.objective import layer_loss
from layerflow.model.presets import init_directory
from manifests.train import TrainManifest, parse
from trainer import loop, metrics
from trainer.data import Batch, Batches, buckets, open_parts
from trainer.export import load_model
from trainer.order import Order
from trainer.planning.budget import sample_costs

CPU = torch.device("cpu")
EVERY = 10  # steps of a block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.sizes:
        return compare_budget(options.steps, options.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        init_directory(folder / "model", "tiny")
        write_latents(folder / "latents", options.clips)
        manifest = make_manifest(folder, options.steps)
        batches = make_batches(manifest)
        blocks = step_blocks(manifest, batches.step(0)[0])
        bare = statistics.median(block.bare_wall for block in blocks)
        print(f"{'':22}{'wall s':>10}{'CPU s':>10}")
        for kind in ("bare", "loop"):
            wall, cpu = (
                statistics.median(getattr(block, f"{kind}_{clock}") for block in blocks)
                for clock in ("wall", "cpu")
            )
            print(f"{kind + ' step':22}{wall:10.4f}{cpu:10.4f}")
        wall = statistics.median(block.loop_wall / block.bare_wall for block in blocks)
        cpu = statistics.median(block.loop_cpu / block.bare_cpu for block in blocks)
        print(f"{'loop / bare, paired':22}{wall:10.3f}{cpu:10.3f}   ({len(blocks)} blocks)")
        rows = metrics.read(Path(manifest.out) / "metrics.csv")[EVERY:]
        wait = sum(row["data_wait"] for row in rows) / sum(row["seconds"] for row in rows)
        print(f"data wait {100 * wait:.2f} % of the step")
        used = manifest.batch / bare
        print(f"the bare step takes {used:.0f} clips/s")
        for label, rate in loader_rates(batches, folder, options.rounds).items():
            print(f"{label:34}{rate:10.0f} clips/s, {rate / used:.1f} x the bare step")


def write_latents(
    folder: Path, clips: int, shapes: Sequence[tuple[int, int, int]] = ((4, 4, 4),)
) -> None:
    """Random latents of the tiny preset's 27 channels; the shapes (by default its own: 4 frames,
    4x4) come in turns."""
    rng = np.random.default_rng(0)
    texts = [f"{slot}, prompt {i}" for i in range(32) for slot in range(3)]

    def rows() -> Any:
        for i in range(clips):
            frames, height, width = shapes[i % len(shapes)]
            shape = (27, frames, height, width)
            moments = {
                layer: np.concatenate([rng.standard_normal(shape), np.full(shape, -30.0)])
                for layer in LAYERS
            }
            keys = {
                f"{layer}_prompt": prompt_key(texts[3 * (i % 32) + slot])
                for slot, layer in enumerate(PROMPTED)
            }
            columns = {"id": f"{i:08d}", "source": "", "content": "", "kind": "pasted", **keys}
            columns |= {"alpha_kind": "soft", "origin_group": "", "num_frames": frames}
            yield clip_row(moments, **columns, height=8 * height, width=8 * width, fps=8.0)

    with LatentsWriter(folder, {"format_version": FORMAT_VERSION}) as writer:
        writer.clips(rows())
        writer.prompts(prompt_row(text, rng.standard_normal((16, 32))) for text in texts)


def make_manifest(folder: Path, steps: int) -> TrainManifest:
    stage = {
        "name": "base",
        "steps": steps,
        "lr": 3e-3,
        "ema": 0.98,
        "trains": "full",
        "mixture": [{"latents": str(folder / "latents")}],
        "tasks": {"generate": 0.5, "decompose": 0.5},
    }
    return parse(
        {"model": str(folder / "model"), "out": str(folder / "out"), "stages": [stage]}
        | {"log_every": EVERY, "save_every": 10**6}
    )


def make_batches(manifest: TrainManifest) -> Batches:
    stage = manifest.stages[0]
    parts = open_parts(manifest, stage)
    rows = [len(part.rows) for part in parts]
    model, scheduler = load_model(manifest.model, CPU)
    timesteps = base_of(model).noise(scheduler).timesteps
    order = Order(0, stage.name, manifest.batch, rows, [1.0], stage.tasks, timesteps, 0.1, 0.05)
    return Batches(parts, order)


@dataclass(frozen=True)
class Block:
    """Seconds a step of one block of the loop and of the block of bare steps after it."""

    loop_wall: float
    loop_cpu: float
    bare_wall: float
    bare_cpu: float


def step_blocks(manifest: TrainManifest, batch: Batch) -> list[Block]:
    """The loop, interrupted at each of its log lines for as many bare steps."""
    step = bare_step(manifest, batch)
    blocks: list[Block] = []
    clock = now()

    def interrupt(line: str) -> None:
        nonlocal clock
        after_loop = now()
        if "loss" not in line:
            clock = after_loop  # said before the first step
            return
        for _ in range(EVERY):
            step()
        after_bare = now()
        loop_wall, loop_cpu = ((b - a) / EVERY for a, b in zip(clock, after_loop, strict=True))
        bare_wall, bare_cpu = ((b - a) / EVERY for a, b in zip(after_loop, after_bare, strict=True))
        blocks.append(Block(loop_wall, loop_cpu, bare_wall, bare_cpu))
        clock = now()

    loop.train(manifest, manifest.out, log=interrupt)
    return blocks[1:]  # the first one warms up


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def bare_step(manifest: TrainManifest, batch: Batch) -> Callable[[], None]:
    """Forward + backward + AdamW on one batch, nothing else."""
    model, scheduler = load_model(manifest.model, CPU)
    process = base_of(model).noise(scheduler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        losses = layer_loss(model, process, *batch.tensors(), layers=batch.layers)
        losses.mean().backward()
        optimizer.step()

    return step


# ---- several sizes ----------------------------------------------------------------------------


SHAPES = ((2, 4, 4), (4, 4, 6), (4, 8, 8))  # a third of the clips each


def compare_budget(steps: int, rounds: int) -> None:
    """Tokens a second of the loop with a fixed batch and with a token budget, in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        init_directory(folder / "model", "tiny")
        write_latents(folder / "latents", 600, SHAPES)
        fixed = make_manifest(folder, steps)
        model, _ = load_model(fixed.model, CPU)
        parts = open_parts(fixed, fixed.stages[0])
        tokens = [sample_costs(model, shape, ()).tokens for shape in buckets(parts)]
        budget = fixed.batch * round(statistics.mean(tokens))
        print(f"tokens of a clip: {', '.join(map(str, tokens))}; the budget: {budget}")
        stage = fixed.stages[0].model_copy(update={"tokens": budget})
        runs = {f"batch {fixed.batch}": fixed}
        runs[f"tokens {budget}"] = fixed.model_copy(update={"stages": [stage]})
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, manifest in runs.items():
                loop.train(manifest, manifest.out, fresh=True, log=lambda line: None)
                rows = metrics.read(Path(manifest.out) / "metrics.csv")[EVERY:]
                each = [row["tokens_per_second"] * row["seconds"] for row in rows]
                rates[name].append(sum(each) / sum(row["seconds"] for row in rows))
                if len(rates[name]) == 1:
                    about = f"{min(each):.0f} to {max(each):.0f} tokens a step"
                    print(f"{name}: {about}, {statistics.mean(each):.0f} on average")
        first, second = rates
        for name, values in rates.items():
            print(
                f"{name}: {statistics.median(values):.0f} tokens/s, {min(values):.0f} to "
                f"{max(values):.0f}"
            )
        pairs = zip(rates[first], rates[second], strict=True)
        ratio = statistics.median(late / early for early, late in pairs)
        print(f"{second} / {first}, paired: {ratio:.3f}")


# ---- loaders ----------------------------------------------------------------------------------


def loader_rates(batches: Batches, folder: Path, rounds: int) -> dict[str, float]:
    """Clips a second of each loader, the median of `rounds` rounds in which all take turns."""
    store = Latents.open(folder / "latents")
    order = np.random.default_rng(0).permutation(len(store)).tolist()
    steps = len(store) // batches.order.batch
    loaders: dict[str, Callable[[], int]] = {
        "ours, noised batches": lambda: sum(b.size for s in range(steps) for b in batches.step(s)),
        "ours, rows in random order": lambda: len([store.item(i) for i in order]),
        **datasets_loaders(store, folder / "latents", order),
        **webdataset_loaders(store, folder / "shards"),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds + 1):
        for name, run in loaders.items():
            start = time.perf_counter()
            count = run()
            rates[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in rates.items()}


def prompt_table(store: Latents) -> dict[str, np.ndarray]:
    """Key -> embedding, as a training script would keep it in memory."""
    return {
        row["key"]: np.frombuffer(row["embedding"], "<f4").reshape(row["tokens"], row["width"])
        for row in store.prompt_rows()
    }


def decode(row: dict[str, Any], table: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What `Latents.item` makes of a row, from plain columns."""
    shape = (
        2 * row["latent_channels"],
        row["latent_frames"],
        row["latent_height"],
        row["latent_width"],
    )
    moments = np.stack([np.frombuffer(row[layer], "<f4").reshape(shape) for layer in LAYERS])
    return moments, np.stack([table[row[f"{layer}_prompt"]] for layer in PROMPTED])


def datasets_loaders(
    store: Latents, folder: Path, order: list[int]
) -> dict[str, Callable[[], int]]:
    from datasets import Dataset, concatenate_datasets

    shards = [Dataset.from_file(str(path)) for path in sorted((folder / "clips").glob("*.arrow"))]
    plain, table = concatenate_datasets(shards), prompt_table(store)
    return {
        "datasets, iterated in order": lambda: len([decode(row, table) for row in plain]),
        "datasets, rows in random order": lambda: len([decode(plain[i], table) for i in order]),
    }


def webdataset_loaders(store: Latents, folder: Path) -> dict[str, Callable[[], int]]:
    """Tar shards of one .npy a clip and its prompts, streamed with a shuffle buffer."""
    if importlib.util.find_spec("webdataset") is None:
        print("webdataset is not installed: left out")
        return {}
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=500, verbose=0) as writer:
        for i in range(len(store)):
            item = store.item(i)
            prompts = [item["prompts"][layer] for layer in PROMPTED]
            cells = {"moments.npy": item["moments"], "prompts.json": prompts}
            writer.write({"__key__": f"{i:08d}", **cells})
    table = prompt_table(store)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def run() -> int:
        stream = webdataset.WebDataset(urls, shardshuffle=False).shuffle(200).decode()
        return len(
            [
                (s["moments.npy"], np.stack([table[key] for key in s["prompts.json"]]))
                for s in stream
            ]
        )

    return {"WebDataset, shuffle buffer of 200": run}


if __name__ == "__main__":
    main()
