"""How the threads of a process wait: of one that trains, and of every command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SAY = """
assert "torch" not in sys.modules
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("KMP_BLOCKTIME"))
"""
TRAINER = "import sys, os, trainer" + SAY
COMMAND = (
    """
import sys, os, contextlib, io
from layerflow.cli.main import main
sys.argv = ["layerflow", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main()
"""
    + SAY
)


@pytest.mark.parametrize(
    ("code", "said", "seen"),
    [
        (TRAINER, {}, "PASSIVE 0"),
        (COMMAND, {}, "PASSIVE 0"),
        (COMMAND, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        (TRAINER, {"GOMP_SPINCOUNT": "1000"}, "None None"),
        (TRAINER, {"KMP_BLOCKTIME": "200"}, "None 200"),
    ],
)
def test_threads_sleep_before_torch_is_loaded_unless_the_user_said_how(
    code: str, said: dict[str, str], seen: str
) -> None:
    names = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY", "GOMP_SPINCOUNT")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=plain | said,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == seen.split()
