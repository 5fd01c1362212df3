"""What a process and all its descendants use: memory at one time, and CPU time so far."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import psutil


class Tree:
    """CPU seconds and memory of a process (None: this one) and of all that descended from it.

    Those whose parents have ended, such as the workers of a cluster that was shut down, count too,
    with what they had used when `sample` last saw them.
    """

    def __init__(self, root: int | None = None) -> None:
        self._root = psutil.Process(root)
        self._known = {self._root.pid: self._root}
        self._cpu: dict[int, float] = {}
        self._lock = threading.Lock()

    @property
    def cpu(self) -> float:
        """CPU seconds so far."""
        self.sample()
        return sum(self._cpu.values())

    def sample(self) -> int:
        """Bytes that all hold now (shared memory counts once; 0 outside Linux)."""
        total = 0
        with self._lock:
            with suppress(psutil.Error):
                self._known |= {p.pid: p for p in self._root.children(recursive=True)}
            for process in self._known.values():
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    self._cpu[process.pid] = times.user + times.system
                    total += getattr(process.memory_full_info(), "pss", 0)
        return total


class PeakMemory:
    """Within the block, samples memory; ``peak`` is in bytes.

    measure: bytes that are held now. every: seconds between two samples.
    """

    def __init__(self, measure: Callable[[], int], every: float = 2.0) -> None:
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
