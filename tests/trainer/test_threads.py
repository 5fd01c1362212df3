"""How the threads of a training process wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import sys, os, trainer
assert "torch" not in sys.modules
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("KMP_BLOCKTIME"))
"""


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ({}, "PASSIVE 0"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "1000"}, "None None"),
        ({"KMP_BLOCKTIME": "200"}, "None 200"),
    ],
)
def test_threads_sleep_before_torch_is_loaded_unless_the_user_said_how(
    said: dict[str, str], seen: str
) -> None:
    names = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY", "GOMP_SPINCOUNT")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=plain | said,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == seen.split()
