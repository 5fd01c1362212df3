"""A corpus job of very many units that do next to nothing: what the job itself costs.

Run: ``python -m bench.scale.units [--units 1000 10000] [--windows 10] [--workers N]``. A unit makes
one small row and refuses the other windows, as a video with a few windows does; everything around
it is the real job: survey-free plan, staging, commits, log, shards. Each size runs in a process of
its own: half of the units, as a job that was cut off, then the whole job, then once more when all
is done. Said are the driver's peak memory, units a second, seconds to the first unit that is done,
seconds that a start takes that finds half (before its first unit) and all done.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from layerflow.clip import LAYERS
from layerflow.corpus.columns import SCHEMA
from layerflow.corpus.table import origin, rejected_row
from pipelines.engine.jobs import Outcome, make_recipe, run_job
from pipelines.engine.recipe import unit_key
from pipelines.engine.workers import Unit


class CutOff(BaseException):
    """Ends a job in the middle, as a kill does."""


def work(payload: dict[str, Any], *, windows: int, started: str) -> Outcome:
    """One row and the other windows as rejected rows; the first unit of all says when it ran."""
    first = Path(started)
    if not first.exists():
        first.write_text(repr(time.time()))
    number = payload["number"]
    row = dict.fromkeys(SCHEMA.names) | {
        "id": f"{number:016x}",
        "kind": "mined",
        **dict.fromkeys(LAYERS, b"x" * 8),
        "num_frames": 1,
        "height": 8,
        "width": 8,
        "fps": 8.0,
        "alpha_kind": "soft",
        "background_kind": "real",
        "origin": origin(payload["uri"], "0" * 64),
        "recipe": "bench",
    }
    refused = [
        rejected_row(payload["uri"], "gate", "next to nothing", kind="mined", recipe="bench")
        for _ in range(windows - 1)
    ]
    return Outcome([row], refused)


def measured(count: int, windows: int, workers: int) -> dict[str, float]:
    """One size, in this process."""
    recipe = make_recipe("mined", {}, 1)
    with tempfile.TemporaryDirectory(prefix="units-bench-") as folder:
        out, first = Path(folder) / "corpus", Path(folder) / "first"
        clock = time.perf_counter()
        units = [Unit(unit_key(i), i, {"number": i, "uri": f"{i}.mp4"}) for i in range(count)]
        planned = time.perf_counter() - clock

        def run(most: int | None = None) -> float:
            first.unlink(missing_ok=True)
            done = partial(work, windows=windows, started=str(first))
            begin, clock, cpu = time.time(), time.perf_counter(), time.process_time()
            if most is None:
                run_job(units, done, out=out, recipe=recipe, workers=workers, quiet=True)
            else:
                left = iter(range(most))

                def cut(payload: dict[str, Any]) -> Outcome:
                    if next(left, None) is None:
                        raise CutOff
                    return done(payload)

                with suppress(CutOff):
                    run_job(units, cut, out=out, recipe=recipe, workers=0, quiet=True)
            waits.append(float(first.read_text()) - begin if first.exists() else 0.0)
            spent.append(time.process_time() - cpu)
            return time.perf_counter() - clock

        waits: list[float] = []
        spent: list[float] = []  # CPU seconds of this process
        half = run(count // 2)
        rest, again = run(), run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "units": count,
        "plan_s": planned,
        "first_s": waits[0],
        "here_units_s": (count // 2) / half,
        "here_units_cpu_s": (count // 2) / spent[0],
        "resumed_first_s": waits[1],
        "second_half_s": rest,
        "second_half_cpu_s": spent[1],
        "all_done_s": again,
        "driver_mb": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0, help="of the second half; 0: no Ray")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.one:
        print(json.dumps(measured(said.units[0], said.windows, said.workers)))
        return
    for count in said.units:
        command = [sys.executable, "-m", "bench.scale.units", "--one", "--units", str(count)]
        command += ["--windows", str(said.windows), "--workers", str(said.workers)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        print(", ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
