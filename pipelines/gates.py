"""The quality gate: thresholds on a clip's stored scores, as presets and by name.

Scores that are known before matting (motion, blur, exposure, text, duplicates) are judged before
it, so that a clip which cannot pass costs little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from layerflow.corpus.scores import PRESETS, QUALITY_FIELDS, thresholds
from layerflow.nearest import did_you_mean

Gate = Mapping[str, tuple[float, float]]
GATES: dict[str, Gate] = {"off": {}, **{name: thresholds(name) for name in PRESETS}}
"""Preset -> score -> (minimum, maximum), of ``layerflow.corpus.scores``. ``coarse`` takes all that
``standard`` takes, and clips whose background nobody saw: for the base stage. ``loose`` is laxer in
most scores, but not in that one."""


def resolve_gate(preset: str, thresholds: Mapping[str, tuple[float, float]] | None = None) -> Gate:
    """The preset's thresholds with some replaced or added. Raises ValueError for unknown names."""
    if preset not in GATES:
        raise ValueError(
            f"unknown quality gate {preset!r}; {did_you_mean(preset, GATES)}choose one of "
            f"{', '.join(GATES)}"
        )
    gate = {**GATES[preset], **(thresholds or {})}
    judge({}, gate)
    return gate


def judge(scores: Mapping[str, float | None], gate: str | Gate) -> str | None:
    """Why a clip fails the quality gate, or None if it passes.

    ``gate``: a preset of ``GATES`` or a mapping score -> (minimum, maximum), both inclusive. A
    score that is absent or None is not judged: not every backend knows its own confidence.
    Raises ValueError for an unknown preset or score name.
    """
    failed = _first_failed(scores, resolve_gate(gate) if isinstance(gate, str) else gate)
    if failed is None:
        return None
    name, side, bound = failed
    return f"{name} {scores[name]:.4g} {side} {bound:g}"


def _first_failed(
    scores: Mapping[str, float | None], gate: Gate
) -> tuple[str, Literal["below", "above"], float] | None:
    """The threshold that decides: score, side, bound."""
    for name, (low, high) in gate.items():
        if name not in QUALITY_FIELDS:
            raise ValueError(
                f"quality gate names an unknown score {name!r}; "
                f"{did_you_mean(name, QUALITY_FIELDS)}known: {', '.join(QUALITY_FIELDS)}"
            )
        value = scores.get(name)
        if value is None or math.isnan(value):
            continue
        if value < low:
            return name, "below", low
        if value > high:
            return name, "above", high
    return None


@dataclass(frozen=True)
class Misses:
    """The clips that one threshold decided: how many, the median of their scores, the nearest."""

    score: str
    side: Literal["below", "above"]
    bound: float
    clips: int
    middle: float
    nearest: float


def misses(rejected: Iterable[Mapping[str, float | None]], gate: Gate) -> list[Misses]:
    """What the gate turned clips down for, the most frequent first. rejected: their scores."""
    values: dict[tuple[str, Literal["below", "above"], float], list[float]] = {}
    for scores in rejected:
        failed = _first_failed(scores, gate)
        if failed is not None:
            values.setdefault(failed, []).append(float(scores[failed[0]] or 0.0))
    found = [
        Misses(*key, len(all_), median(all_), max(all_) if key[1] == "below" else min(all_))
        for key, all_ in values.items()
    ]
    return sorted(found, key=lambda one: -one.clips)


def looser(preset: str) -> list[str]:
    """The presets that are laxer than one, the nearest first."""
    order = list(reversed(PRESETS))
    return order[order.index(preset) + 1 :] if preset in order else []
