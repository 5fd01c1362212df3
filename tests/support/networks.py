"""A network for tests of the actors that hold networks, and units that ask it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.engine.networks import network
from pipelines.engine.staging import Parts, json_part


def note(folder: str, what: str) -> None:
    (Path(folder) / f"{what}.{os.getpid()}.{time.time_ns()}").touch()


def notes(folder: Path, what: str) -> int:
    return len(list(folder.glob(f"{what}.*")))


class Doubler:
    """Doubles numbers. A negative one ends its process; 77 does so the first time it comes, 66 is
    refused."""

    def __init__(self, folder: str) -> None:
        note(folder, "made")
        self.folder, self.factor = folder, 2

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        first = int(numbers[0])
        if first == 66:
            raise ValueError("66 is refused")
        if first < 0 or (first == 77 and not notes(Path(self.folder), "fell")):
            note(self.folder, "fell" if first == 77 else "poison")
            os._exit(1)
        return numbers * self.factor

    def call_many(self, calls: list[tuple[np.ndarray]]) -> list[np.ndarray]:
        note(self.folder, "together")
        return [self(*call) for call in calls]


def work(payload: dict[str, Any], *, folder: str) -> Parts:
    """What the network makes of a unit's numbers, twice."""
    note(folder, f"unit-{payload['index']}")
    thing = network("matte", Doubler, folder)
    try:
        first = thing(np.array(payload["numbers"]))
        second = thing(first + thing.factor)
    except ValueError as error:
        return {"said.json": json_part(str(error))}
    return {"said.json": json_part(second.tolist())}
