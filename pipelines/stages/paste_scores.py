"""Scores of pasted clips, and the rules that refuse a draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from layerflow.clip import COLOUR_LAYERS, U8, LayeredClip
from layerflow.corpus import decode_row

if TYPE_CHECKING:
    from manifests.paste import PasteOptions

MAX_CLIPPED = 0.05
_DRAWN_ONLY = ("moving", "clipped")


def score_layers(layers: Mapping[str, U8]) -> dict[str, float]:
    """Scores of layers that are exact by construction, before encoding.

    - ``equation_error``: largest ``|a F + (1 - a) B - blended|`` of the first, middle and last
      frame, in levels, in real numbers (rounding alone gives up to 0.5).
    - ``area_mean|min|max``: share of the picture that alpha covers, over frames.
    - ``soft_fraction``: share of pixels with alpha in 13..242 among those with any.
    - ``border_contact``: share of border pixels under alpha >= 128.
    - ``exposure_low|high``: share of opaque pixels of the foreground with all channels <= 5 |
      >= 250 in the middle frame.
    """
    alpha, foreground = layers["alpha"], layers["foreground"]
    count = len(alpha)
    area = alpha.mean(axis=(1, 2)) / 255.0
    middle = alpha[count // 2]
    solid = foreground[count // 2][middle >= 200]
    touched = int(np.count_nonzero(middle > 3))
    soft = int(np.count_nonzero((middle > 12) & (middle < 243)))
    edges = np.concatenate([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], axis=1)
    checked = sorted({0, count // 2, count - 1})
    return {
        "equation_error": max(_equation_error(layers, t) for t in checked),
        "area_mean": float(area.mean()),
        "area_min": float(area.min()),
        "area_max": float(area.max()),
        "area_cv": float(area.std() / max(area.mean(), 1e-6)),
        "soft_fraction": soft / max(touched, 1),
        "border_contact": float((edges >= 128).mean()),
        "exposure_low": float((solid <= 5).all(axis=1).mean()) if len(solid) else 0.0,
        "exposure_high": float((solid >= 250).all(axis=1).mean()) if len(solid) else 0.0,
    }


def _equation_error(layers: Mapping[str, U8], t: int) -> float:
    matte = layers["alpha"][t]
    rows = np.flatnonzero(matte.any(axis=1))
    if not len(rows):
        return float(np.abs(layers["background"][t] - layers["blended"][t].astype(int)).max())
    where = np.s_[rows[0] : rows[-1] + 1]
    a = matte[where][..., None] * np.float32(1 / 255)
    back = layers["background"][t][where].astype(np.float32)
    exact = back + a * (layers["foreground"][t][where] - back)
    inside = float(np.abs(exact - layers["blended"][t][where]).max())
    clear = matte == 0
    outside = (layers["background"][t] != layers["blended"][t])[clear].any()
    return 255.0 if outside else inside


def check_rules(scores: dict[str, float], options: PasteOptions) -> str | None:
    """Why a draw is refused, or None. Removes what only the rules need from ``scores``."""
    moving, extra = (scores.pop(name) for name in _DRAWN_ONLY)
    low, high = options.area_limits
    if not low <= scores["area_mean"] <= high:
        return f"area {scores['area_mean']:.3f} is outside {low:g}..{high:g}"
    if scores["visible_fraction"] < options.min_visible:
        return f"only {scores['visible_fraction']:.2f} of the object is visible in some frame"
    if not moving and scores["motion"] < options.min_motion:
        return f"{scores['motion']:.2f} pixels a frame is nearly no motion"
    if extra > MAX_CLIPPED:
        return f"matching colours would clip {extra:.2f} of the object"
    return None


def encoded_scores(row: Mapping[str, Any], clip: LayeredClip) -> dict[str, float]:
    """What the codecs did to a row: its cells decoded again.

    - ``encoded_error``: mean ``|a F + (1 - a) B - blended|`` of the decoded layers, in levels.
    - ``encoded_psnr``: PSNR of the worst colour layer against what was encoded, dB.
    """
    back = decode_row(row)
    error = np.abs(back.recomposed().astype(np.int16) - back.blended).mean()
    squared = []
    for layer in COLOUR_LAYERS:
        difference = back.layer(layer).astype(np.int16) - clip.layer(layer)
        squared.append(float(np.square(difference, dtype=np.int32).mean()))
    psnr = 10 * np.log10(255.0**2 / max(max(squared), 1e-6))
    return {"encoded_error": float(error), "encoded_psnr": float(psnr)}
