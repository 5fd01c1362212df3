"""What this process and all its children use: memory at one time, and CPU time so far."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import psutil


def tree_memory(root: int | None = None) -> int:
    """Bytes that a process (None: this one) and its descendants hold now; 0 outside Linux.

    Proportional set size: memory that processes share counts once.
    """
    total, first = 0, psutil.Process(root)
    for process in (first, *first.children(recursive=True)):
        with suppress(psutil.Error):  # it ended meanwhile
            total += getattr(process.memory_full_info(), "pss", 0)
    return total


def tree_cpu(root: int | None = None) -> float:
    """CPU seconds of a process (None: this one), its descendants and those of them that ended."""
    total, first = 0.0, psutil.Process(root)
    for process in (first, *first.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


class PeakMemory:
    """Within the block, samples memory; ``peak`` is in bytes.

    measure: bytes that are held now. every: seconds between two samples.
    """

    def __init__(self, measure: Callable[[], int] = tree_memory, every: float = 2.0) -> None:
        self.peak = 0
        self._measure, self._every = measure, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            self.peak = max(self.peak, self._measure())
