"""How the CPU threads of a process wait for each other."""

from __future__ import annotations

import os

PATIENT = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Environment variable -> value with which the threads of GNU's and of LLVM's OpenMP sleep when
they have nothing to do."""

ASKED = (*PATIENT, "GOMP_SPINCOUNT", "KMP_LIBRARY")
"""What a user may have said about it."""


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait, in this process and in those that it starts.

    By themselves they spin: a step of many small operations is then the fastest on an idle machine,
    and on a busy one each of its barriers costs a time slice. Must be called before torch is
    loaded, which reads the environment once. Does nothing where the user has said how to wait.
    """
    if not any(name in os.environ for name in ASKED):
        os.environ.update(PATIENT)
