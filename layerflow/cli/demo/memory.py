"""The greatest memory that this process and all its children held at one time (Linux)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

EVERY = 1.0  # seconds


class PeakMemory:
    """Within the block, samples the memory of the process tree; ``peak`` is in bytes.

    Proportional set size: memory that processes share counts once. 0 where there is no ``/proc``.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self.peak = max(self.peak, tree_memory(os.getpid()))


def tree_memory(root: int) -> int:
    """Bytes that a process and its descendants hold now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (entry / "stat").read_text().rpartition(")")[2]
            children.setdefault(int(after_name.split()[1]), []).append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        total += _held(process)
    return total


def _held(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
