"""`OUT/state.json`: which process trains a run, and how the last one ended."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from layerflow.documents import read_json
from layerflow.files import write_json
from layerflow.locations import without_secrets

STATE = "state.json"
ERROR_LENGTH = 300


class RunState:
    """The record of one process. Nothing is written before `begin`: a folder may hold a run that
    is not this one."""

    def __init__(self, out: Path) -> None:
        self.path = out / STATE
        self.said: dict[str, Any] = {}

    def begin(self) -> None:
        """This process trains the run."""
        me = psutil.Process()
        self.said = {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time()}
        write_json(self.path, {**self.said, "ended": False, "error": None})

    def end(self, error: BaseException | None) -> None:
        """It does no longer. An interruption is no error."""
        if self.said:
            text = None
            if isinstance(error, Exception):
                text = without_secrets(f"{type(error).__name__}: {error}")[:ERROR_LENGTH]
            write_json(self.path, {**self.said, "ended": True, "error": text})


@contextmanager
def run_state(out: Path) -> Iterator[RunState]:
    """A record that is ended with the block."""
    state = RunState(out)
    try:
        yield state
    except BaseException as error:
        state.end(error)
        raise
    state.end(None)


def read_state(out: Path) -> tuple[str, str]:
    """`running`, `failed` or `ended` (by itself or because it was told to), and why or where:
    a process that is gone without having said so has failed; one of another machine is believed.
    """
    path = out / STATE
    if not path.is_file():
        return "ended", ""
    said = read_json(path, {"host": str, "pid": int, "ended": bool})
    if said["ended"]:
        return ("failed", str(said["error"])) if said.get("error") else ("ended", "")
    if said["host"] != socket.gethostname():
        return "running", f"on {said['host']}, as it said"
    if _alive(said["pid"], said.get("started")):
        return "running", f"process {said['pid']}" if said["pid"] != os.getpid() else ""
    return "failed", f"process {said['pid']} is gone: it was killed"


def _alive(pid: int, started: Any) -> bool:
    """Whether this process still is the one that was started then."""
    try:
        return bool(psutil.Process(pid).create_time() == started)
    except psutil.Error:
        return False
