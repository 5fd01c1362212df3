"""Progress in a log: a line a minute, nothing when quiet."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from pipelines.engine import jobs
from pipelines.engine import progress as module
from pipelines.engine.desk import state_line
from pipelines.engine.progress import in_words, progress, progress_line
from pipelines.engine.workers import Pool
from tests.support.job_units import RECIPE, units, work

T = TypeVar("T")


def test_a_line_says_rate_and_what_is_left() -> None:
    said = progress_line(120, 5000, 2400.0)  # 3 a minute, 4880 / 3 = 1627 min = 27 h
    assert said == "120 of 5,000 units in 40 min, 3 a minute, about 27 h left"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 days")],
)
def test_durations_are_in_the_unit_that_suits_them(seconds: float, said: str) -> None:
    assert in_words(seconds) == said


def test_a_log_gets_a_line_a_minute_and_none_for_the_last_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def units() -> Iterator[int]:
        for index in range(10):
            clock[0] += 25.0
            yield index

    assert list(progress(units(), 10, quiet=False)) == list(range(10))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" units")[0] for line in lines] == ["3 of 10", "6 of 10", "9 of 10"]
    state = {"actors": 2, "calls": 1200, "busy": [0.93, 0.95], "deaths": 0}
    list(progress(units(), 10, False, lambda: state_line("matte", state | {"deaths": 1})))
    line = capsys.readouterr().err.splitlines()[0]
    assert line.endswith("left; matte: 2 actors, 1,200 calls, 94 % busy, died 1 times")
    assert list(progress(units(), 10, quiet=True)) == list(range(10))
    assert capsys.readouterr().err == ""


def test_a_line_says_what_the_units_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def listens(
        items: Iterable[T], total: int, quiet: bool, more: Callable[[], str]
    ) -> Iterator[T]:
        for item in items:
            said.append(more())
            yield item
        said.append(more())

    monkeypatch.setattr(jobs, "Pool", partial(Pool, progress=listens))
    jobs.run_job(units(6), work, out=tmp_path / "c", recipe=RECIPE, workers=0, quiet=True)
    # Units 2 and 5 reject what they have, the others give two clips each (support.job_units).
    assert said[:4] == [
        "",
        "; 2 clips, 0.0 GB",
        "; 4 clips, 0.0 GB",
        "; 4 clips, 0.0 GB; rejected: gate 1",
    ]
    assert said[6] == "; 8 clips, 0.0 GB; rejected: gate 2"


@pytest.mark.slow
def test_ray_shows_what_the_units_gave_as_metrics(tmp_path: Path) -> None:
    """In a cluster whose node exports metrics, what Prometheus would read."""
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.shutdown()
    fast = {"metrics_report_interval_ms": 200}
    options = {"num_cpus": 2, "_metrics_export_port": port, "_system_config": fast}
    ray.init(address="local", log_to_driver=False, **options)
    try:
        jobs.run_job(units(6), work, out=tmp_path / "c", recipe=RECIPE, workers=2, quiet=True)
        wanted = {
            ("layerflow_units", "done"): 6.0,
            ("layerflow_units", "left"): 0.0,
            ("layerflow_clips", ""): 8.0,
            ("layerflow_rejected", "gate"): 2.0,
        }
        end, seen = time.monotonic() + 60, {}
        while seen != wanted and time.monotonic() < end:
            time.sleep(0.5)
            with suppress(OSError):
                seen = metrics_at(port, str(tmp_path / "c")).items() & wanted.items()
                seen = dict(seen)
        assert seen == wanted
    finally:
        ray.shutdown()


def metrics_at(port: int, job: str) -> dict[tuple[str, str], float]:
    """(name, state or stage) -> value, of a job's metrics at a node's port."""
    found = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        for line in page.read().decode().splitlines():
            if "layerflow_" in line and not line.startswith("#") and f'job="{job}"' in line:
                name = line.partition("{")[0].removeprefix("ray_")
                tag = re.search(r'(?:state|stage)="(\w+)"', line)
                found[name, tag[1] if tag else ""] = float(line.split()[-1])
    return found
