"""Units that take a share of a GPU, on a cluster that says it has one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

SCRIPT = """
import builtins, os, sys
from pathlib import Path
import ray
from pipelines.engine.jobs import Outcome, make_recipe, run_job
from pipelines.engine.workers import Unit

loads, out = Path(sys.argv[1]), Path(sys.argv[2])

def network():
    if not hasattr(builtins, "network"):  # what a process keeps, however its code came to it
        builtins.network = object()
        (loads / str(os.getpid())).touch()

def work(payload):
    assert ray.get_gpu_ids(), "no GPU was given"
    network()
    if payload["index"] == 3:
        os._exit(1)
    return Outcome()

ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False)
units = [Unit(f"u{i}", i, {"index": i, "uri": f"{i}.mp4"}) for i in range(16)]
recipe = make_recipe("mined", {}, 1)
said = run_job(units, work, out=out, recipe=recipe, gpus=0.5, workers=2, quiet=True)
print(said.kept, said.rejected, said.reasons)
"""


@pytest.mark.slow
def test_a_network_is_loaded_once_an_actor_not_once_a_unit(tmp_path: Path) -> None:
    """16 units at half a GPU each: two actors, and one more for each death of the unit that kills
    its worker, which becomes a rejected row."""
    loads = tmp_path / "loads"
    loads.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(loads), str(tmp_path / "c")],
        cwd=ROOT, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("0 1 "), done.stdout
    assert "worker died" in done.stdout
    assert 2 <= len(list(loads.iterdir())) <= 6
