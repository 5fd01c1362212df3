"""What the units of a job gave so far: for its lines of progress, and for Ray's metrics.

Ray exports the metrics of a driver on its node (``metrics_export_port``), where Prometheus reads
them and Ray's dashboard shows them: gauges that begin with ``layerflow_``, tagged with the job.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

CLIPS, BYTES, REJECTED_BY = "clips", "bytes", "rejected: "
EVERY = 10.0  # seconds between two looks at the actors, which have to be asked

States = Callable[[], Mapping[str, Mapping[str, Any]]]


class Tally:
    """Counts of one job in this run. job: its name in the metrics."""

    def __init__(self, job: str = "") -> None:
        self.job = job
        self.counts: Counter[str] = Counter()
        self._gauges: dict[str, Any] = {}
        self._looked = -EVERY

    def add(self, told: Mapping[str, int]) -> None:
        """What a unit said that it gave: ``CLIPS``, ``BYTES``, and for each stage that rejected
        something ``REJECTED_BY`` and its name."""
        self.counts.update(told)

    def line(self) -> str:
        """``; 1,200 clips, 3.4 GB; rejected: gate 250, filters 50``; empty before anything."""
        parts = []
        if self.counts[CLIPS]:
            parts.append(f"{self.counts[CLIPS]:,} clips, {self.counts[BYTES] / 1e9:,.1f} GB")
        rejected = self.rejected().most_common()
        if rejected:
            each = ", ".join(f"{stage} {count:,}" for stage, count in rejected)
            parts.append(f"{REJECTED_BY}{each}")
        return "".join(f"; {part}" for part in parts)

    def rejected(self) -> Counter[str]:
        """Stage -> rows that it rejected."""
        there = self.counts.items()
        return Counter(
            {
                name.removeprefix(REJECTED_BY): n
                for name, n in there
                if n and name.startswith(REJECTED_BY)
            }
        )

    def export(self, done: int, total: int, states: States) -> None:
        """Tell Ray, which must run here. states: of the actors, by step (``Desk.state``)."""
        self._set("units", done, state="done")
        self._set("units", total - done, state="left")
        self._set("clips", self.counts[CLIPS])
        self._set("bytes_written", self.counts[BYTES])
        for stage, count in self.rejected().items():
            self._set("rejected", count, stage=stage)
        if time.monotonic() - self._looked < EVERY:
            return
        self._looked = time.monotonic()
        for step, state in states().items():
            self._set("actors", state["actors"], step=step)
            busy = state["busy"]
            self._set("actors_busy", sum(busy) / len(busy) if busy else 0.0, step=step)

    def _set(self, name: str, value: float, **tags: str) -> None:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            says = f"{name.replace('_', ' ')} of a corpus job, in this run"
            self._gauges[name] = Gauge(f"layerflow_{name}", says, tag_keys=("job", *tags))
        self._gauges[name].set(value, tags={"job": self.job, **tags})
