"""Every bench at small size, and a history that shows what became worse: ``make bench``.

    python bench/history/run.py [--only NAME ...] [--rounds 3] [--dry-run]

Each command of `figures.py` runs as often as said; of each of its figures the median goes to
HISTORY as one line of JSON with the spread (largest less smallest), the commit, the machine and its
load. A figure is worse when it moved the wrong way, against the last line of the same machine, by
more than the larger of the two spreads: those are printed, and the exit status is 1. `picture.py`
draws the history. About ten minutes on 2 idle CPU cores; what else runs there is in the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from figures import BENCHES, Bench, Figure
from picture import draw

ROOT = Path(__file__).resolve().parents[2]
HISTORY = ROOT / "docs" / "benchmarks" / "history.jsonl"
PICTURE = ROOT / "docs" / "images" / "history.png"
LIMIT = 600  # seconds of one run of one bench
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}


def main() -> None:
    names = [bench.name for bench in BENCHES]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true", help="print, and leave the history alone")
    parser.add_argument("--history", type=Path, default=HISTORY)
    options = parser.parse_args()
    before, where = read(options.history), surroundings()
    lines: list[dict[str, Any]] = []
    problems = []
    for bench in (bench for bench in BENCHES if bench.name in options.only):
        try:
            lines += [where | line for line in measured(bench, options.rounds)]
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            problems.append(f"{bench.name}: {error}")
    worse = list(setbacks(lines, before))
    if not options.dry_run and lines:
        options.history.parent.mkdir(parents=True, exist_ok=True)
        with options.history.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        draw(read(options.history), PICTURE)
    print("\n".join([*worse, *problems]) or "nothing is worse than at the last run here")
    sys.exit(1 if worse or problems else 0)


def measured(bench: Bench, rounds: int) -> Iterator[dict[str, Any]]:
    """Runs a bench and gives one line a figure. RuntimeError when it fails or says no figure."""
    runs = [values(bench, output(bench)) for _ in range(rounds)]
    load = round(os.getloadavg()[0], 1)
    for figure in bench.figures:
        found = [run[figure.name] for run in runs]
        median, spread = statistics.median(found), max(found) - min(found)
        line = {"bench": bench.name, "figure": figure.name, "unit": figure.unit}
        line |= {"median": round(median, 6), "spread": round(spread, 6)}
        said = f"{bench.name:14} {figure.name:44} {median:10.4g} {figure.unit:9} +- {spread:.2g}"
        print(said, flush=True)
        yield line | {"better": figure.better, "rounds": rounds, "load": load}


def output(bench: Bench) -> str:
    """What one run prints. RuntimeError with its last words when it fails."""
    done = subprocess.run(
        [sys.executable, *bench.command],
        cwd=ROOT,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"ends with status {done.returncode}: {done.stderr[-300:].strip()}")
    return done.stdout


def values(bench: Bench, printed: str) -> dict[str, float]:
    """Figure -> its value in what a bench printed. RuntimeError for a figure that is not there."""
    return {figure.name: value(figure, printed) for figure in bench.figures}


def value(figure: Figure, printed: str) -> float:
    """The last place where the pattern matches: a table's last row is the largest size."""
    found = figure.pattern.findall(printed)
    if not found:
        raise RuntimeError(f"prints no {figure.name!r} (pattern {figure.pattern.pattern!r})")
    return float(found[-1].replace(",", ""))


def setbacks(
    lines: Iterable[Mapping[str, Any]], before: Iterable[Mapping[str, Any]]
) -> Iterator[str]:
    """One sentence for each line that is worse than the last one of its machine and figure."""
    last = {key(line): line for line in before}
    for line in lines:
        old = last.get(key(line))
        if old is None:
            continue
        change = line["median"] - old["median"]
        wrong = change if line["better"] == "lower" else -change
        if wrong > max(line["spread"], old["spread"]):
            yield (
                f"worse: {line['bench']}, {line['figure']}: {old['median']:.4g} at "
                f"{old['commit']}, now {line['median']:.4g} {line['unit']}"
            )


def key(line: Mapping[str, Any]) -> tuple[str, str, str]:
    return line["machine"], line["bench"], line["figure"]


def read(history: Path) -> list[dict[str, Any]]:
    if not history.is_file():
        return []
    return [json.loads(line) for line in history.read_text().splitlines() if line.strip()]


def surroundings() -> dict[str, str]:
    """When, of which commit (``+``: with changes that are not in it), on what."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    commit = said.stdout.strip() or "unknown"
    return {"date": time.strftime("%Y-%m-%d"), "commit": commit, "machine": machine()}


def machine() -> str:
    """Processor and cores, as the system names them."""
    name = platform.processor() or platform.machine()
    try:
        about = Path("/proc/cpuinfo").read_text()
        name = next(
            line.partition(":")[2].strip()
            for line in about.splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
