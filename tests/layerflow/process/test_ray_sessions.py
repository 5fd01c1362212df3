"""Folders that local Ray clusters leave behind: the last few stay, others' are never touched."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from layerflow.files import OWNER
from layerflow.ray_start import KEPT, claim_session


@pytest.fixture(scope="module")
def ended() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def session(folder: Path, number: int, mark: object) -> Path:
    made = folder / f"session_2026-11-{number:02d}_10-00-00_000001_{number}"
    (made / "logs").mkdir(parents=True)
    (made / "logs" / "raylet.out").write_text("log")
    if mark is not None:
        (made / OWNER).write_text(mark if isinstance(mark, str) else json.dumps(mark))
    return made


def test_the_last_few_that_ended_stay_and_older_ones_go(tmp_path: Path, ended: int) -> None:
    here = socket.gethostname()
    old = [session(tmp_path, n, {"host": here, "pid": ended}) for n in range(1, KEPT + 3)]
    own = session(tmp_path, 28, None)
    claim_session(own)
    assert [path.exists() for path in old] == [False, False, *[True] * KEPT]
    assert json.loads((own / OWNER).read_text()) == {"host": here, "pid": os.getpid()}


@pytest.mark.parametrize(
    "mark",
    [
        None,  # a cluster that somebody started by `ray start`
        {"host": "elsewhere", "pid": "ended"},  # in a folder that machines share
        {"host": "here", "pid": os.getppid()},  # a job that runs
        {"host": "here", "pid": -1},
        {"host": "here", "pid": 10**30},
        {"host": "here", "pid": "x"},
        {"pid": 1},
        "[]",
        "not JSON",
    ],
)
def test_a_folder_that_may_be_in_use_is_never_touched(
    mark: object, tmp_path: Path, ended: int
) -> None:
    if isinstance(mark, dict) and mark.get("host") == "here":
        mark = mark | {"host": socket.gethostname()}
    if isinstance(mark, dict) and mark["pid"] == "ended":
        mark = mark | {"pid": ended}
    others = [session(tmp_path, number, mark) for number in range(1, KEPT + 3)]
    claim_session(session(tmp_path, 28, None))
    assert all((path / "logs" / "raylet.out").is_file() for path in others)


def test_a_link_is_not_followed(tmp_path: Path, ended: int) -> None:
    here = {"host": socket.gethostname(), "pid": ended}
    for number in range(1, KEPT + 1):
        session(tmp_path, number + 10, here)
    target = session(tmp_path / "elsewhere", 1, here)
    link = tmp_path / "session_0_latest"
    link.symlink_to(target)
    claim_session(session(tmp_path, 28, None))
    assert target.is_dir() and link.is_symlink()
