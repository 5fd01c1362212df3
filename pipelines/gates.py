"""The quality gate: thresholds on a clip's stored scores, as presets and by name.

Scores that are known before matting (motion, blur, exposure, text, duplicates) are judged before
it, so that a clip which cannot pass costs little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from layerflow.corpus.scores import PRESETS, QUALITY_FIELDS, thresholds

Gate = Mapping[str, tuple[float, float]]
GATES: dict[str, Gate] = {"off": {}, **{name: thresholds(name) for name in PRESETS}}
"""Preset -> score -> (minimum, maximum), of ``layerflow.corpus.scores``."""


def resolve_gate(preset: str, thresholds: Mapping[str, tuple[float, float]] | None = None) -> Gate:
    """The preset's thresholds with some replaced or added. Raises ValueError for unknown names."""
    if preset not in GATES:
        raise ValueError(f"unknown quality gate {preset!r}; choose one of {', '.join(GATES)}")
    gate = {**GATES[preset], **(thresholds or {})}
    judge({}, gate)
    return gate


def judge(scores: Mapping[str, float | None], gate: str | Gate) -> str | None:
    """Why a clip fails the quality gate, or None if it passes.

    ``gate``: a preset of ``GATES`` or a mapping score -> (minimum, maximum), both inclusive. A
    score that is absent or None is not judged: not every backend knows its own confidence.
    Raises ValueError for an unknown preset or score name.
    """
    for name, (low, high) in (resolve_gate(gate) if isinstance(gate, str) else gate).items():
        if name not in QUALITY_FIELDS:
            raise ValueError(
                f"quality gate names an unknown score {name!r}; known: {', '.join(QUALITY_FIELDS)}"
            )
        value = scores.get(name)
        if value is None or math.isnan(value):
            continue
        if value < low:
            return f"{name} {value:.4g} below {low:g}"
        if value > high:
            return f"{name} {value:.4g} above {high:g}"
    return None
