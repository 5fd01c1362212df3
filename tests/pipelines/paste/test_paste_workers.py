"""The same corpus, byte for byte, from any number of workers and after kill -9."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from layerflow.corpus.table import Corpus
from manifests.paste import PasteOptions
from pipelines.paste.job import run_paste
from tests.support import ROOT
from tests.support.pasted import backdrops, options, stills

SCRIPT = """
import sys
from pathlib import Path
import pipelines.paste.plan as plan
from manifests.paste import PasteOptions
from pipelines.paste.job import run_paste
from tests.support import ROOT

plan.MAX_UNIT = 2
said = PasteOptions.model_validate_json(sys.stdin.read())
run_paste(said, workers=int(sys.argv[1]), quiet=True)
"""


def digest(out: str) -> str:
    """Hash of all shards and of the rejected table."""
    files = sorted(Path(out).rglob("*.arrow"))
    assert files
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def start_and_kill(said: PasteOptions, workers: int, units: int) -> None:
    """Run the job in a process of its own, kill -9 it once some units are staged."""
    command = [sys.executable, "-c", SCRIPT, str(workers)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
    assert child.stdin is not None
    child.stdin.write(said.model_dump_json().encode())
    child.stdin.close()
    end = time.monotonic() + 400
    while len(list((Path(said.out) / "staging").glob("[0-9a-f]*"))) < units:
        assert child.poll() is None and time.monotonic() < end, "the job did not get going"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()


def many(tmp_path: Path, name: str) -> PasteOptions:
    more: dict[str, Any] = {"objects": (1, 2), "shadow": "background", "fps": 7.5}
    fg, bg = tmp_path / "fg", tmp_path / "bg"
    return options(tmp_path, fg, bg, out=str(tmp_path / name), count=16, **more)


def test_killed_and_started_again_equals_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.paste.plan.MAX_UNIT", 2)
    stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    whole, killed = many(tmp_path, "whole"), many(tmp_path, "killed")
    run_paste(whole, workers=0, quiet=True)
    start_and_kill(killed, 0, 3)
    summary = run_paste(killed, workers=0, quiet=True)
    assert summary.resumed >= 3
    assert digest(killed.out) == digest(whole.out)


@pytest.mark.slow
def test_one_two_and_four_workers_and_kill_9_give_equal_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.engine.cluster import stop_ray

    monkeypatch.setattr("pipelines.paste.plan.MAX_UNIT", 2)
    stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    seen = {}
    try:
        for workers in (0, 1, 2, 4):
            said = many(tmp_path, f"out{workers}")
            run_paste(said, workers=workers, quiet=True)
            seen[str(workers)] = (digest(said.out), tuple(Corpus.open(said.out).ids()))
        killed = many(tmp_path, "killed")
        start_and_kill(killed, 2, 3)
        assert run_paste(killed, workers=4, quiet=True).resumed >= 3
        seen["killed"] = (digest(killed.out), tuple(Corpus.open(killed.out).ids()))
    finally:
        stop_ray()
    assert len(set(seen.values())) == 1, seen
