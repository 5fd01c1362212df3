"""The figures of the study: a JSON file for each arm and seed, and one of the baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.study.arms import ARMS
from layerflow.files import write_json
from pipelines.engine.recipe import unit_key


class Results:
    """Of one study in one folder: FOLDER/baselines.json and FOLDER/seed-N/ARM.json."""

    def __init__(self, folder: Path, study: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.study = None if study is None else unit_key(study)

    def place(self, name: str, seed: int | None = None) -> Path:
        folder = self.folder if seed is None else self.folder / f"seed-{seed}"
        return folder / f"{name.replace(' ', '_')}.json"

    def has(self, name: str, seed: int | None = None) -> bool:
        """Whether it is done. ValueError if it is of another study."""
        path = self.place(name, seed)
        if path.is_file() and self.study not in (None, json.loads(path.read_text())["study"]):
            raise ValueError(f"{path} is of another study.yaml; choose another --results")
        return path.is_file()

    def put(self, name: str, found: Mapping[str, Any], seed: int | None = None) -> None:
        write_json(self.place(name, seed), {"study": self.study, "found": found})

    def get(self, name: str, seed: int | None = None) -> dict[str, Any]:
        return dict(json.loads(self.place(name, seed).read_text())["found"])

    def seeds(self) -> list[int]:
        """All that have begun."""
        return sorted(int(path.name.partition("-")[2]) for path in self.folder.glob("seed-*"))

    def arms(self) -> dict[str, dict[str, list[float]]]:
        """Arm -> figure -> its values, one a seed, as far as the study has come."""
        found: dict[str, dict[str, list[float]]] = {}
        for arm in ARMS:
            for seed in self.seeds():
                if self.place(arm, seed).is_file():
                    for name, value in flat(self.get(arm, seed)):
                        found.setdefault(arm, {}).setdefault(name, []).append(value)
        return found


def flat(found: Mapping[str, Any], before: str = "") -> list[tuple[str, float]]:
    """Names with dots -> numbers."""
    out: list[tuple[str, float]] = []
    for name, value in found.items():
        out += (
            flat(value, f"{before}{name}.")
            if isinstance(value, Mapping)
            else [(before + name, value)]
        )
    return out
