"""Training data from an object store that is slow: how long a step waits for its batch.

Run: ``python -m bench.scale.storage [--step 1.36] [--latency 0.1] [--mbytes 25] [--steps 20]``.
A row has the size of the paper's: four layers of 16 channels and their variances, 4 x 60 x 90,
float32, with three prompts of 226 x 4096. Files lie on this disk; every range that is read waits as
long as a store with this latency, and this many megabytes a second for one connection, would take.
A step is a sleep of the time that a GPU would need; nothing else is made up. The cache is empty and
holds less than is read, so that no row comes from it. Target: data wait under 2 % of the time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.corpus.latents import (
    FORMAT_VERSION,
    LatentsWriter,
    clip_row,
    prompt_key,
    prompt_row,
)
from layerflow.corpus.remote import cache
from layerflow.corpus.remote.latents import open_latents
from layerflow.corpus.store import Store
from layerflow.layer_set import layer_set
from trainer.data import Batches, MixturePart, Shape
from trainer.order import Order

LAYERS = layer_set("rgba")
SHAPE, TEXT = (32, 4, 60, 90), (226, 4096)


def make_latents(folder: Path, count: int) -> None:
    """Random rows of the paper's size; prompts are shared by ten clips each."""
    rng = np.random.default_rng(0)
    texts = [f"{slot}, text {i}" for i in range(-(-count // 10)) for slot in range(3)]

    def clips() -> Iterator[dict[str, Any]]:
        for i in range(count):
            keys = [prompt_key(texts[i // 10 * 3 + slot]) for slot in range(3)]
            names = [f"{layer}_prompt" for layer in LAYERS.prompted]
            about: dict[str, Any] = dict(zip(names, keys, strict=True))
            about |= dict.fromkeys(("id", "source", "content", "origin_group"), f"{i}")
            yield clip_row(
                {layer: rng.standard_normal(SHAPE, np.float32) for layer in LAYERS.layers},
                kind="pasted",
                alpha_kind="soft",
                num_frames=16,
                height=480,
                width=720,
                fps=8.0,
                **about,
            )

    with LatentsWriter(folder, {"format_version": FORMAT_VERSION}) as writer:
        writer.clips(clips())
        writer.prompts(prompt_row(text, rng.standard_normal(TEXT, np.float32)) for text in texts)


def slow_store(folder: Path, latency: float, mbytes: float) -> None:
    """From now on what is read of ``s3://`` is read of a folder, as late as it would come."""
    plain = Store.read

    def read(self: Store, name: str, start: int | None = None, end: int | None = None) -> bytes:
        if self.local is not None:
            return plain(self, name, start, end)
        data = plain(Store(folder), name, start, end)
        time.sleep(latency + len(data) / (mbytes * 1e6))
        return data

    Store.read = read  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=float, default=1.36, help="seconds of a step on the GPU")
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--mbytes", type=float, default=25.0, help="a second, of one connection")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1, help="samples of this GPU in a step")
    parser.add_argument("--prefetch", type=int, default=2)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder, count = Path(root) / "latents", said.steps * said.batch
        make_latents(folder, count)
        os.environ |= {cache.FOLDER: f"{root}/cache", cache.LIMIT: "0.05"}
        slow_store(folder, said.latency, said.mbytes)
        clock = time.perf_counter()
        source = open_latents("s3://slow/latents")
        print(f"opened {len(source)} rows in {time.perf_counter() - clock:.2f} s")
        shapes = [Shape(SHAPE[1], *SHAPE[2:])] * count
        order = Order(
            seed=0,
            stage="bench",
            batch=said.batch,
            sizes=[count],
            weights=[1.0],
            tasks={"generate": 1.0},
            timesteps=lambda strata: strata,
        )
        batches = Batches([MixturePart(source, range(count), shapes)], order)
        waits, begin = [], time.perf_counter()
        stream = batches.stream(0, said.steps, said.prefetch)
        for _ in range(said.steps):
            clock = time.perf_counter()
            next(stream)
            waits.append(time.perf_counter() - clock)
            time.sleep(said.step)
        whole = time.perf_counter() - begin
        stream.close()
    print(
        f"first batch after {waits[0]:.2f} s; then {sum(waits[1:]):.3f} s in {said.steps - 1} steps"
    )
    print(f"data wait {100 * sum(waits[1:]) / (whole - waits[0] - said.step):.2f} % of the time")
    print(f"with the first one {100 * sum(waits) / whole:.2f} %")


if __name__ == "__main__":
    main()
