"""How fast ``layerflow publish`` converts a corpus, against copying the same bytes.

    python -m bench.publish [--megabytes 600] [--folder DIR]
    python -m bench.publish --simulate 1000000     # rows of 200 kB without their media, to a double

Media cells are videos of realistic sizes, most of it padding (conversion does not decode). Both the
copy and the
conversion read from the page cache and end with an fsync; they run in pairs, and the ratio is the
median of the pairs' ratios. Peak memory (anonymous: mapped corpus pages belong to the page cache)
is measured in processes of their own, on three sizes.

``--simulate`` plans and pushes a corpus whose media are zeros that take no memory; the files that
go to the double of the Hub are empty, but as many as there would be. It prints the memory of that
process, the files, the commits and the requests.
"""

from __future__ import annotations

import argparse
import mmap
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerflow.cli.demo.memory import PeakMemory
from layerflow.clip import BLENDED, PROMPTED
from layerflow.corpus.log import Shard, Version
from layerflow.corpus.scores import QUALITY_FIELDS
from layerflow.corpus.table import SCHEMA, Chunk, Corpus, origin, quality_cell
from layerflow.corpus.writer import write_table
from layerflow.media.cells import encode_alpha, encode_color
from pipelines.publish import files, hub
from pipelines.publish.files import Made, PublishOptions, PublishPlan, make_plan, plan_of
from pipelines.publish.parts import Making, make_data
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
    jobs = [(plan.name(part), part.rows) for part in plan.parts]
    making = Making(plan.corpus, plan.shards, out, 0)
    for name, _ in make_data(making, jobs, plan.features[0].arrow_schema):
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


ROW_BYTES = 200_000
BATCH_ROWS = 256
SHARD_ROWS = 65_536


@dataclass(frozen=True)
class Simulated(Corpus):
    """Rows of one length about ``ROW_BYTES``, made as they are read; media are zeros."""

    @classmethod
    def of(cls, rows: int) -> Simulated:
        counts = [min(SHARD_ROWS, rows - first) for first in range(0, rows, SHARD_ROWS)]
        shards = tuple(
            Shard(f"data-{n:016x}.arrow", count, count * ROW_BYTES, f"{n:064x}")
            for n, count in enumerate(counts)
        )
        return cls("simulated", shards, Version(1, "mine", shards))

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    def chunks(self) -> Iterator[Chunk]:
        for first in range(0, len(self), BATCH_ROWS):
            yield partial(self._made, first, min(BATCH_ROWS, len(self) - first))

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        return self._made(index, 1, columns).to_pylist()[0]

    def _made(self, first: int, rows: int, columns: Sequence[str] | None) -> pa.RecordBatch:
        names = SCHEMA.names if columns is None else list(columns)
        places = range(first, first + rows)
        same = _template().slice(0, rows)
        found = {name: same.column(name) for name in names if name not in CELL_BYTES}
        found |= {name: _zeros(name, places) for name in CELL_BYTES if name in names}
        if "id" in names:
            found["id"] = pa.array([f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in places])
        if "origin" in names:
            source = found["origin"]
            uris = pa.array([f"video-{n // 20}.mp4" for n in places])
            parts = [uris, *(source.field(i) for i in range(1, source.type.num_fields))]
            found["origin"] = pa.StructArray.from_arrays(parts, fields=list(source.type))
        return pa.RecordBatch.from_arrays([found[name] for name in names], names=names)


@cache
def _template() -> pa.RecordBatch:
    row = {
        **{"id": "", "kind": "mined", "num_frames": 49, "height": 480, "width": 720, "fps": 8.0},
        **{f"{layer}_prompt": "a prompt of about forty letters" for layer in PROMPTED},
        **{"alpha_kind": "soft", "background_kind": "filled", "recipe": "0" * 16},
        "origin": origin("video.mp4", "0" * 64, licence="CC-BY-4.0"),
        "quality": dict.fromkeys(QUALITY_FIELDS, 0.5),
    }
    return pa.RecordBatch.from_pylist([row] * BATCH_ROWS, schema=SCHEMA)


def _zeros(layer: str, places: range) -> pa.Array:
    """Cells of a layer, with the number of the row at their end."""
    share = CELL_BYTES[layer] * ROW_BYTES // sum(CELL_BYTES.values())
    sizes = [share + n % 5000 for n in places]
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype("<i8")
    data = mmap.mmap(-1, int(ends[-1]))
    for end, n in zip(ends[1:].tolist(), places, strict=True) if layer == BLENDED else ():
        data[end - 8 : end] = n.to_bytes(8, "little")
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(places), buffers)


def simulate_outside(rows: int, folder: Path) -> None:
    """Run ``simulate`` against a double of the Hub in this process."""
    from tests.support.hub_double import hub_double
    from tests.support.hub_kit import environment

    with hub_double() as double, tempfile.TemporaryDirectory(dir=folder) as home:
        command = [sys.executable, __file__, "--simulate", str(rows), "--inside", "--folder", home]
        subprocess.run(command, check=True, env=environment(double, Path(home)))
        repo = double.repos["me/simulated"]
        names = list(double.files("me/simulated"))
        folders = Counter(name.rpartition("/")[0] for name in names)
        print(f"files       {len(names)}, at most {max(folders.values())} in a folder")
        print(f"commits     {repo.made - 1}, {len(repo.history('main')) - 1} of them on main")
        entries = [
            sum(files.get(name) is not file for name, file in commit.files.items())
            for commit in repo.commits.values() if commit.parent
            for files in [repo.commits[commit.parent].files]
        ]  # fmt: skip
        print(f"entries     at most {max(entries)} in a commit")
        calls = Counter(f"{call.split()[0]} {_kind(call)}" for call in double.calls)
        print(f"requests    {len(double.calls)}: {dict(calls.most_common(6))}")


def _kind(call: str) -> str:
    """The part of a request that is no name of anything."""
    kinds = r"preupload|batch|verify|receive-pack|commit|paths-info|tree|resolve|/blob/"
    found = re.search(kinds, call)
    return found[0].strip("/") if found else "other"


def simulate(rows: int, folder: Path) -> None:
    """Plan and push a simulated corpus; prints time and memory."""
    corpus = Simulated.of(rows)
    before = anonymous_memory()
    started = time.perf_counter()

    def made(plan: PublishPlan, below: Path, known: Any, **how: Any) -> Iterator[Made]:
        print(f"planned     {time.perf_counter() - started:.0f} s, {len(plan.parts)} parts")
        for name, key in plan.keys.items():
            if name not in known:
                (below / name).parent.mkdir(parents=True, exist_ok=True)
                (below / name).write_bytes(name.encode())
                yield Made(name, key, 0)

    def no_sheet(*arguments: Any) -> bytes:
        return b""

    with PeakMemory(anonymous_memory, every=0.05) as memory:
        hub.make_plan = lambda path, options, workers, before: plan_of(corpus, options, 0, before)
        hub.make_parts = made
        files.make_sheet, files._encoded_rms = no_sheet, lambda plan: {}
        lines = hub.push(
            Path("simulated"), PublishOptions("me/simulated"), folder, purge=False, workers=0,
            quiet=True,
        )[1]  # fmt: skip
    print(*lines, sep="\n")
    size = rows * ROW_BYTES / 1e12
    print(f"pushed      {rows} rows, {size:.2f} TB in {time.perf_counter() - started:.0f} s")
    print(f"memory      {before / 2**20:.0f} MB before, {memory.peak / 2**20:.0f} MB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--convert", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--simulate", type=int, help="rows of a corpus without media")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.simulate:
        (simulate if arguments.inside else simulate_outside)(arguments.simulate, arguments.folder)
        return
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
