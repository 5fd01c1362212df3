"""What the loop costs over the bare step: `python bench/train_step.py [--steps 60] [--threads 1]`.

On the tiny preset (0.94 M parameters, batch 8, 4 frames of 32x32), in one run:

- the bare step: forward, backward and optimizer of the same network on one batch in memory;
- the loop: `trainer.loop` with loader, metrics, average and checks, as `layerflow train` runs it;
- the loader: clips a second in one process, alone, and as plain `datasets` rows of the same store.

Wall seconds are medians; CPU seconds are less touched by whatever else the machine does.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerflow.clip import LAYERS, PROMPTED
from layerflow.latents import (
    FORMAT_VERSION,
    Latents,
    LatentsWriter,
    clip_row,
    prompt_key,
    prompt_row,
)
from layerflow.objective import layer_loss
from layerflow.presets import init_directory
from manifests.train import TrainManifest, parse
from trainer import loop
from trainer.data import Batch, Batches, open_parts
from trainer.export import load_model
from trainer.order import Order

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clips", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        init_directory(folder / "model", "tiny")
        write_latents(folder / "latents", options.clips)
        manifest = make_manifest(folder, options.steps)
        batches = make_batches(manifest)
        bare = bare_steps(manifest, batches.step(0)[0], options.steps)
        full = loop_steps(manifest, options.steps)
        print(f"{'':22}{'wall s':>10}{'CPU s':>10}")
        for label, (wall, cpu) in (("bare step", bare), ("loop step", full)):
            print(f"{label:22}{wall:10.4f}{cpu:10.4f}")
        print(f"{'loop / bare':22}{full[0] / bare[0]:10.3f}{full[1] / bare[1]:10.3f}")
        used = manifest.batch / bare[0]
        print(f"the bare step takes {used:.0f} clips/s")
        for label, rate in loader_rates(manifest, batches, folder / "latents").items():
            print(f"{label:22}{rate:10.0f} clips/s, {rate / used:.1f} x the bare step")


def write_latents(folder: Path, clips: int) -> None:
    """Random latents in the tiny preset's shape: 27 channels, 4 frames, 4x4."""
    rng = np.random.default_rng(0)
    texts = [f"{slot}, prompt {i}" for i in range(32) for slot in range(3)]

    def rows() -> Any:
        for i in range(clips):
            shape = (27, 4, 4, 4)
            moments = {
                layer: np.concatenate([rng.standard_normal(shape), np.full(shape, -30.0)])
                for layer in LAYERS
            }
            keys = {
                f"{layer}_prompt": prompt_key(texts[3 * (i % 32) + slot])
                for slot, layer in enumerate(PROMPTED)
            }
            columns = {"id": f"{i:08d}", "source": "", "content": "", "kind": "pasted", **keys}
            columns |= {"alpha_kind": "soft", "origin_group": "", "num_frames": 4}
            yield clip_row(moments, **columns, height=32, width=32, fps=8.0)

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
        | {"log_every": 10, "save_every": 10**6}
    )


def make_batches(manifest: TrainManifest) -> Batches:
    stage = manifest.stages[0]
    parts = open_parts(manifest, stage)
    rows = [len(part.rows) for part in parts]
    order = Order(0, stage.name, manifest.batch, rows, [1.0], stage.tasks, 0.1, 0.05)
    return Batches(parts, order)


def bare_steps(manifest: TrainManifest, batch: Batch, steps: int) -> tuple[float, float]:
    """Median wall and CPU seconds of forward + backward + AdamW on one batch."""
    model, scheduler = load_model(manifest.model, CPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        losses = layer_loss(
            model,
            scheduler,
            batch.latents,
            batch.prompt_embeds,
            batch.given,
            batch.timesteps,
            batch.noise,
            batch.motion_gate,
        )
        losses.mean().backward()
        optimizer.step()

    return medians(step, steps)


def medians(step: Callable[[], object], steps: int) -> tuple[float, float]:
    walls, cpus = [], []
    for index in range(steps + 5):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        if index >= 5:  # the first ones warm up
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def loop_steps(manifest: TrainManifest, steps: int) -> tuple[float, float]:
    """Median wall and mean CPU seconds a step of the real loop, between its log lines."""
    marks: list[tuple[float, float]] = []
    loop.train(
        manifest,
        manifest.out,
        log=lambda line: marks.append((time.perf_counter(), time.process_time())),
    )
    pairs = list(itertools.pairwise(marks))
    every = manifest.log_every
    walls = [(b[0] - a[0]) / every for a, b in pairs]
    cpus = [(b[1] - a[1]) / every for a, b in pairs]
    return statistics.median(walls), statistics.median(cpus)


def loader_rates(manifest: TrainManifest, batches: Batches, folder: Path) -> dict[str, float]:
    """Clips a second: our batches; our rows; the same Arrow files through `datasets`."""
    count = 400

    def rate(run: Callable[[], object], clips: int) -> float:
        run()
        start = time.perf_counter()
        run()
        return clips / (time.perf_counter() - start)

    store = Latents.open(folder)
    chosen = np.random.default_rng(0).integers(0, len(store), count).tolist()
    steps = count // manifest.batch
    rates = {
        "loader, batches": rate(
            lambda: [batches.step(step) for step in range(steps)], steps * manifest.batch
        ),
        "loader, rows": rate(lambda: [store.item(i) for i in chosen], count),
    }
    from datasets import Dataset, concatenate_datasets

    shards = [Dataset.from_file(str(path)) for path in sorted((folder / "clips").iterdir())]
    plain = concatenate_datasets(shards)

    def decode(row: dict[str, Any]) -> list[np.ndarray]:
        return [np.frombuffer(row[layer], "<f4").reshape(54, 4, 4, 4) for layer in LAYERS]

    rates["datasets, rows"] = rate(lambda: [np.stack(decode(plain[i])) for i in chosen], count)
    return rates


if __name__ == "__main__":
    main()
