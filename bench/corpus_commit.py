"""What the last step of a corpus job costs: ``python bench/corpus_commit.py [MEGABYTES] [UNITS]``.

Units of random media are staged once; then their shards are made by one process and by Ray on all
CPUs, against plain copies (read, write, fsync) of the same bytes by as many processes. Then many
tiny units are staged: what a start costs that finds them all done.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from corpus_rows import make_rows

from layerflow.clip import LAYERS
from layerflow.corpus.columns import SCHEMA
from layerflow.corpus.store import Store
from pipelines.engine.cutting import Piece, cut, make_shards
from pipelines.engine.growth import ROWS
from pipelines.engine.staging import Staging, stream_part
from pipelines.engine.workers import Pool

ROUNDS = 5
COPY = "import shutil, os, sys\nfor name in sys.argv[2:]:\n    shutil.copyfile(name, sys.argv[1] + '/' + name.replace('/', '_'))\nos.sync()"  # noqa: E501


def rows_of(unit: int, cell_bytes: int) -> Iterator[dict[str, Any]]:
    draw = random.Random(unit)
    for row in make_rows(4):
        yield {**row, **{layer: draw.randbytes(cell_bytes) for layer in LAYERS}}


def staged(folder: Path, units: int, cell_bytes: int) -> tuple[Staging, list[Piece]]:
    staging = Staging.begin(folder)
    pieces = []
    for unit in range(units):
        key = f"{unit:020x}"
        staging.commit(key, {ROWS: stream_part(rows_of(unit, cell_bytes), SCHEMA)})
        about = staging.record(key)[ROWS]
        pieces.append(Piece(key, str(folder / key), ROWS, about["bytes"], about["sum"]))
    return staging, pieces


def copied(pieces: list[Piece], target: Path, processes: int) -> float:
    target.mkdir()
    names = [f"{piece.folder}/{piece.name}" for piece in pieces]
    started = time.perf_counter()
    shares = [names[i::processes] for i in range(processes)]
    running = [subprocess.Popen([sys.executable, "-c", COPY, str(target), *s]) for s in shares]
    assert not any(process.wait() for process in running)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def shards(
    pieces: list[Piece], out: Path, staging: Staging, workers: int, size: int = 160 << 20
) -> float:
    pool = Pool(workers, quiet=True)
    started = time.perf_counter()
    made = make_shards(cut(pieces, size), str(out), SCHEMA, staging, pool)
    seconds = time.perf_counter() - started
    assert sum(shard.rows or 0 for shard in made) == 4 * len(pieces)
    shutil.rmtree(out)
    shutil.rmtree(staging.folder / "shards")
    return seconds


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    many = int(sys.argv[2]) if len(sys.argv) > 2 else 5000
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="store-bench-") as folder:
        root = Path(folder)
        units = max(8, megabytes // 8)
        staging, pieces = staged(root / "s", units, 500_000)
        total = sum(piece.bytes for piece in pieces) / 1e6
        shards(pieces[:4], root / "warm", staging, cores, 1)  # of one piece each: starts Ray
        for processes in (1, cores):
            workers = 0 if processes == 1 else processes
            both = [
                (copied(pieces, root / "copies", processes),
                 shards(pieces, root / "out", staging, workers))
                for _ in range(ROUNDS)
            ]  # fmt: skip
            plain, ours = (median(seconds) for seconds in zip(*both, strict=True))
            ratio = median(a / b for a, b in both)
            print(
                f"{total:.0f} MB, {processes} processes: copy {total / plain:.0f} MB/s, "
                f"shards {total / ours:.0f} MB/s, ratio {ratio:.2f} (median of {ROUNDS})"
            )
        staging, pieces = staged(root / "t", many, 10)
        started = time.perf_counter()
        assert not staging.missing(piece.key for piece in pieces)
        print(f"{many} units found done in {time.perf_counter() - started:.2f} s")
        assert Store(root / "t").names()


if __name__ == "__main__":
    main()
