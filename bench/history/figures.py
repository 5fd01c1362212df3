"""What `run.py` runs, and where each bench prints its figures.

Benches that need media or weights of the user (`decoders`, `matting`, `sharpness`, `windows`,
`rembg_speed`), a GPU, or more than a few minutes (`convert`, `train_threads`, those of
`bench/toy`) are not here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """pattern: its only group is the number, in what the bench prints."""

    name: str
    unit: str
    better: Literal["lower", "higher"]
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Bench:
    """command: arguments for Python, in the project's root."""

    name: str
    command: tuple[str, ...]
    figures: tuple[Figure, ...]


NUMBER = r"([\d.,]*\d)"


def lower(name: str, unit: str, pattern: str) -> Figure:
    return Figure(name, unit, "lower", _compiled(pattern))


def higher(name: str, unit: str, pattern: str) -> Figure:
    return Figure(name, unit, "higher", _compiled(pattern))


def _compiled(pattern: str) -> re.Pattern[str]:
    """``#`` stands for the number, a space for any spaces."""
    return re.compile(pattern.replace(" ", r"\s+").replace("#", NUMBER))


BENCHES = (
    Bench(
        "model",
        ("-m", "bench.model", "--repeats", "2"),
        (
            lower("tiny CogVideoX / diffusers", "x", r"tiny, cpu: .* ours #x"),
            lower("Wan at 1.3B width / diffusers", "x", r"1.3B width, one block, cpu: .* ours #x"),
        ),
    ),
    Bench(
        "train step",
        ("bench/train_step.py", "--steps", "40", "--clips", "200", "--rounds", "1"),
        (
            lower("loop / bare step, CPU", "x", r"loop / bare, paired [\d.]+ #"),
            lower("bare step", "s CPU", r"bare step [\d.]+ #"),
        ),
    ),
    Bench(
        "mine",
        ("bench/mine.py", "--videos", "3", "10"),
        (
            higher("kernels / job, CPU", "", r"by wall, # by CPU"),
            lower("memory of the job", "MB", r"10 [\d.]+ [\d.]+ [\d.]+ #"),
        ),
    ),
    Bench(
        "paste",
        ("bench/paste.py", "--clips", "2", "--size", "240x360"),
        (
            higher("everything on / plain compositor", "x", r"everything on: # times"),
            higher("kernels / job", "", r"kernels / whole job: #"),
            lower("a clip", "MB", r"# MB a clip"),
        ),
    ),
    Bench(
        "publish",
        ("bench/publish.py", "--megabytes", "120"),
        (
            higher("conversion / copy", "x", r"ratio # of copy"),
            lower("memory at most", "MB", r"before, # MB at most: double"),
        ),
    ),
    Bench(
        "commit",
        ("bench/corpus_commit.py", "160", "1000"),
        (
            higher("shards / copy, all cores", "x", r"MB, [2-9]\d* processes: .* ratio #"),
            lower("a start that finds 1000 units done", "s", r"found done in # s"),
        ),
    ),
    Bench(
        "rows",
        ("bench/corpus_rows.py", "2000", "40000"),
        (
            lower("a whole row of 40,000", "ms", r"40000 rows: .* whole row # ms"),
            lower("small columns of a row", "ms", r"40000 rows: .* small row # ms"),
        ),
    ),
    Bench(
        "units",
        ("-m", "bench.scale.units", "--units", "1000"),
        (
            higher("units of nothing", "a CPU s", r"here_units_cpu_s #"),
            lower("memory of the driver", "MB", r"driver_mb #"),
        ),
    ),
    Bench(
        "duplicates",
        ("-m", "bench.duplicates", "--windows", "10000"),
        (
            higher("recall", "", r"recall #"),
            lower("10,000 windows", "s CPU", r"; # s CPU"),
        ),
    ),
    Bench(
        "containment",
        ("bench/containment.py", "--size", "240x360", "--encode", "240x360", "--pairs", "3"),
        (lower("encode, contained / not", "x", r"encode .*: contained costs #"),),
    ),
    Bench(
        "codec bytes",
        ("-m", "bench.codec_bytes", "--repeat", "5"),
        (lower("distinct results of equal frames", "", r"240x360 \S+.*: # distinct"),),
    ),
)
