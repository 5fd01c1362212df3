"""What a command says when it is told to stop."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support import ROOT

SCRIPT = """
import time
from layerflow.cli import main
def command():
    print("works", flush=True)
    time.sleep(60)
main.build_app = lambda: command
main.main()
"""


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_stopped_command_ends_with_one_line(number: signal.Signals, said: str) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert command.stdout is not None and command.stdout.readline() == "works\n"
    command.send_signal(number)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 128 + number
    assert errors == f"layerflow: {said}; the same command goes on from here\n"
