"""The quality gate: thresholds on a clip's stored scores, as presets and by name.

Scores that are known before matting (motion, blur, exposure, text, duplicates) are judged before
it, so that a clip which cannot pass costs little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from layerflow.corpus.table import QUALITY_FIELDS

Gate = Mapping[str, tuple[float, float]]
GATES: dict[str, dict[str, tuple[float, float]]] = {
    "off": {},
    "loose": {
        "motion": (0.01, 80.0),
        "blur": (3.0, math.inf),
        "exposure_low": (0.0, 0.9),
        "exposure_high": (0.0, 0.9),
        "text": (0.0, 0.02),
        "duplicate_distance": (0.5, math.inf),
        "area_mean": (0.005, 0.8),
        "area_min": (0.001, 1.0),
        "recomposition_error": (0.0, 4.0),
        "unseen_fraction": (0.0, 0.9),
        "matte_confidence": (0.35, 1.0),
    },
    "standard": {
        "motion": (0.03, 40.0),
        "blur": (8.0, math.inf),
        "exposure_low": (0.0, 0.75),
        "exposure_high": (0.0, 0.75),
        "text": (0.0, 0.004),
        "duplicate_distance": (1.0, math.inf),
        "area_mean": (0.01, 0.65),
        "area_min": (0.004, 1.0),
        "area_cv": (0.0, 0.6),
        "border_contact": (0.0, 0.35),
        "recomposition_error": (0.0, 1.5),
        "outside_fidelity": (0.0, 0.5),
        "soft_fraction": (0.0, 0.6),
        "warp_iou": (0.7, 1.0),
        "newcomers": (0.0, 0.15),
        "leftover_fraction": (0.0, 0.03),
        "bystander_fraction": (0.0, 0.2),
        "ghost": (0.0, 0.5),
        "unseen_fraction": (0.0, 0.35),
        "matte_confidence": (0.6, 1.0),
        "matte_agreement": (0.65, 1.0),
        "matte_stability": (0.8, 1.0),
        "motion_contrast": (0.3, 1.0),
    },
    "strict": {
        "motion": (0.05, 30.0),
        "blur": (15.0, math.inf),
        "exposure_low": (0.0, 0.6),
        "exposure_high": (0.0, 0.6),
        "text": (0.0, 0.002),
        "duplicate_distance": (1.5, math.inf),
        "area_mean": (0.02, 0.6),
        "area_min": (0.01, 1.0),
        "area_cv": (0.0, 0.4),
        "border_contact": (0.0, 0.25),
        "recomposition_error": (0.0, 1.0),
        "outside_fidelity": (0.0, 0.1),
        "soft_fraction": (0.0, 0.4),
        "warp_iou": (0.85, 1.0),
        "newcomers": (0.0, 0.1),
        "leftover_fraction": (0.0, 0.02),
        "bystander_fraction": (0.0, 0.1),
        "ghost": (0.0, 0.35),
        "unseen_fraction": (0.0, 0.2),
        "registration_residual": (0.0, 1.0),
        "matte_confidence": (0.7, 1.0),
        "matte_agreement": (0.7, 1.0),
        "matte_stability": (0.85, 1.0),
        "motion_contrast": (0.4, 1.0),
    },
}


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
