"""How fast ``layerflow publish`` converts a corpus, against copying the same bytes.

    python bench/publish.py [--megabytes 600] [--folder DIR]

Media cells are videos of realistic sizes, most of it padding (conversion does not decode). Both the
copy and the
conversion read from the page cache and end with an fsync; they run in pairs, and the ratio is the
median of the pairs' ratios. Peak memory (anonymous: mapped corpus pages belong to the page cache)
is measured in processes of their own, on three sizes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.cli.demo.memory import PeakMemory
from layerflow.corpus.table import SCHEMA, origin, quality_cell
from layerflow.corpus.writer import write_table
from layerflow.media.cells import encode_alpha, encode_color
from pipelines.publish.card import ConfigInfo
from pipelines.publish.files import PublishOptions, PublishPlan, data_files, make_plan
from pipelines.publish.tables import features_of

CELL_BYTES = {"foreground": 900_000, "alpha": 160_000, "background": 900_000, "blended": 900_000}
REPEATS = 7


def make_corpus(path: Path, megabytes: int) -> int:
    """A corpus of about so many megabytes; returns the bytes of its shards."""
    rng = np.random.default_rng(0)
    grey = np.full((16, 480, 720), 90, np.uint8)
    videos = {layer: encode_color(grey[..., None].repeat(3, 3), 8.0) for layer in CELL_BYTES}
    videos["alpha"] = encode_alpha(grey, 8.0)

    def padded(layer: str, size: int) -> bytes:
        """The video with random bytes behind it, in a box that says to skip them."""
        more = max(0, size - len(videos[layer]) - 9)
        if layer == "alpha":
            head = b"\xec\x01" + more.to_bytes(7, "big")
        else:
            head = (more + 8).to_bytes(4, "big") + b"free"
        return videos[layer] + head + rng.bytes(more)

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(max(1, megabytes * 1_000_000 // sum(CELL_BYTES.values()))):
            yield {
                "id": f"{index:016x}",
                "kind": "mined",
                **{layer: padded(layer, size) for layer, size in CELL_BYTES.items()},
                **{f"{layer}_prompt": "a prompt" for layer in CELL_BYTES if layer != "alpha"},
                **{"num_frames": 16, "height": 480, "width": 720, "fps": 8.0},
                **{"alpha_kind": "soft", "background_kind": "filled", "recipe": "0" * 16},
                "origin": origin(f"video-{index % 50}.mp4", "0" * 64),
                "quality": quality_cell({"flicker": 0.01}),
            }

    write_table(path, rows(), SCHEMA)
    return sum(file.stat().st_size for file in path.glob("*.arrow"))


def convert(plan: PublishPlan, out: Path) -> None:
    config = ConfigInfo("default", "data", features_of({"mined"}), {})
    for name, _ in data_files(plan, out, config):
        flush(out / name)


def copy(plan: PublishPlan, out: Path) -> None:
    for file in sorted(plan.corpus.path.glob("*.arrow")):
        with file.open("rb") as source, (out / file.name).open("wb") as target:
            while block := source.read(1 << 20):
                target.write(block)
        flush(out / file.name)


def flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def planned(corpus: Path) -> PublishPlan:
    return make_plan(corpus, PublishOptions("bench/bench"), workers=0)


def timed(work: Callable[[PublishPlan, Path], None], plan: PublishPlan, folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        started = time.perf_counter()
        work(plan, Path(out))
        return time.perf_counter() - started


def anonymous_memory() -> int:
    """Anonymous resident memory of this process, bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def peak_memory(corpus: Path, folder: Path) -> list[float]:
    """Anonymous memory in megabytes before a conversion, and its peak, in a process of its own."""
    command = [sys.executable, __file__, "--convert", str(corpus), "--folder", str(folder)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(number) for number in answer.split()]


def print_memory(corpus: Path, folder: Path) -> None:
    plan = planned(corpus)
    features_of({"mined"})  # imports datasets
    before = anonymous_memory()
    with PeakMemory(anonymous_memory, every=0.002) as memory:
        timed(convert, plan, folder)
    print(before / 2**20, memory.peak / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--convert", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        print_memory(arguments.convert, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        size = make_corpus(folder / "whole", arguments.megabytes)
        make_corpus(folder / "quarter", arguments.megabytes // 4)
        plan = planned(folder / "whole")  # its checks read all: the page cache is warm
        timed(convert, planned(folder / "quarter"), folder)
        pairs = [(timed(copy, plan, folder), timed(convert, plan, folder)) for _ in range(REPEATS)]
        ratios = sorted(copying / converting for copying, converting in pairs)
        copying, converting = (sorted(times)[REPEATS // 2] for times in zip(*pairs, strict=True))
        print(
            f"{size / 1e6:.0f} MB, {REPEATS} pairs, {os.cpu_count()} CPUs, load {os.getloadavg()}"
        )
        print(f"copy        {size / 1e6 / copying:7.0f} MB/s (median)")
        print(f"conversion  {size / 1e6 / converting:7.0f} MB/s (median)")
        print(
            f"ratio       {ratios[REPEATS // 2]:7.2f} of copy (median of pairs; "
            f"{ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
        make_corpus(folder / "double", 2 * arguments.megabytes)
        for name in ("quarter", "whole", "double"):
            before, peak = peak_memory(folder / name, folder)
            print(f"memory      {before:7.0f} MB before, {peak:.0f} MB at most: {name}")


if __name__ == "__main__":
    main()
