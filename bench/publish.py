"""How fast ``layerflow publish`` converts a corpus, against copying the same bytes.

    python bench/publish.py [--megabytes 600] [--folder DIR]

Media cells are random bytes of realistic sizes (conversion does not decode). Both the copy and the
conversion read from the page cache and end with an fsync. Peak memory is measured in processes of
their own, on two sizes.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.corpus import SCHEMA, origin, quality_cell, write_table
from pipelines.publish import Plan, PublishOptions, data_files, make_plan
from pipelines.publish_card import ConfigInfo
from pipelines.publish_tables import features_of

CELL_BYTES = {"foreground": 900_000, "alpha": 160_000, "background": 900_000, "blended": 900_000}
REPEATS = 5


def make_corpus(path: Path, megabytes: int) -> int:
    """A corpus of about so many megabytes; returns the bytes of its shards."""
    rng = np.random.default_rng(0)

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(max(1, megabytes * 1_000_000 // sum(CELL_BYTES.values()))):
            yield {
                "id": f"{index:016x}",
                "kind": "mined",
                **{layer: rng.bytes(size) for layer, size in CELL_BYTES.items()},
                **{f"{layer}_prompt": "a prompt" for layer in CELL_BYTES if layer != "alpha"},
                **{"num_frames": 16, "height": 480, "width": 720, "fps": 8.0},
                **{"alpha_kind": "soft", "background_kind": "filled", "recipe": "0" * 16},
                "origin": origin(f"video-{index % 50}.mp4", "0" * 64),
                "quality": quality_cell({"flicker": 0.01}),
            }

    write_table(path, rows(), SCHEMA)
    return sum(file.stat().st_size for file in path.glob("*.arrow"))


def convert(plan: Plan, out: Path) -> None:
    config = ConfigInfo("default", "data", features_of({"mined"}), {})
    for name, _ in data_files(plan, out, config):
        flush(out / name)


def copy(plan: Plan, out: Path) -> None:
    for file in sorted(plan.corpus.path.glob("*.arrow")):
        with file.open("rb") as source, (out / file.name).open("wb") as target:
            while block := source.read(1 << 20):
                target.write(block)
        flush(out / file.name)


def flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def planned(corpus: Path) -> Plan:
    return make_plan(corpus, PublishOptions("bench/bench"), workers=0)


def timed(work: Callable[[Plan, Path], None], plan: Plan, folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        started = time.perf_counter()
        work(plan, Path(out))
        return time.perf_counter() - started


def peak_memory(corpus: Path, folder: Path) -> float:
    """Greatest resident memory of a conversion in a process of its own, in megabytes."""
    command = [sys.executable, __file__, "--convert", str(corpus), "--folder", str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--convert", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        timed(convert, planned(arguments.convert), arguments.folder)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        size = make_corpus(folder / "large", arguments.megabytes)
        make_corpus(folder / "small", arguments.megabytes // 4)
        plan = planned(folder / "large")  # its checks read all: the page cache is warm
        timed(convert, planned(folder / "small"), folder)
        pairs = [(timed(copy, plan, folder), timed(convert, plan, folder)) for _ in range(REPEATS)]
        copying, converting = (sorted(times)[REPEATS // 2] for times in zip(*pairs, strict=True))
        print(f"{size / 1e6:.0f} MB, median of {REPEATS} runs, {os.cpu_count()} CPUs")
        print(f"copy        {size / 1e6 / copying:7.0f} MB/s")
        print(
            f"conversion  {size / 1e6 / converting:7.0f} MB/s  ({copying / converting:.2f} of copy)"
        )
        memory = [peak_memory(folder / name, folder) for name in ("small", "large")]
        print(f"peak memory {memory[0]:7.0f} MB of a quarter, {memory[1]:.0f} MB of all")


if __name__ == "__main__":
    main()
