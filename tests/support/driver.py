"""Runs one job in a process of its own, for tests that kill it: `python -m tests.support.driver`.

Standard input holds a pickle: a function, its arguments, its options.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.encode import job as encode
from tests.support import ROOT


def encode_row_by_row(*given: Any, **how: Any) -> object:
    """``run_encode`` with units of one clip."""
    encode.UNIT_ROWS = 1
    return encode.run_encode(*given, **how)


def lose_the_driver(
    disk: Path, begun: Callable[[], object], job: Callable[..., object], *given: Any, **how: Any
) -> None:
    """Starts a job as another machine would, with its own folder for temporary files, and kills its
    process once something has begun."""
    disk.mkdir()
    places = {"TMPDIR": str(disk), "LAYERFLOW_CACHE": str(disk / "cache")}
    command = [sys.executable, "-m", "tests.support.driver"]
    driver = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | places, stdin=subprocess.PIPE, start_new_session=True
    )
    assert driver.stdin is not None
    with driver.stdin as pipe:
        pickle.dump((job, given, how), pipe)
    while not begun():
        assert driver.poll() is None, "the driver ended before it was killed"
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


if __name__ == "__main__":
    from tests.support import driver  # the functions that were pickled are of this module

    assert driver
    asked, arguments, options = pickle.load(sys.stdin.buffer)
    asked(*arguments, **options)
