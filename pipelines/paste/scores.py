"""Scores of pasted clips, and the rules that refuse a draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from layerflow.clip import BACKGROUND, LAYERS, PROMPTED, U8, LayeredClip
from layerflow.corpus.table import decode_row, encode_row
from layerflow.media.cells import decode_color, encode_color
from pipelines.engine.steps import Refused
from pipelines.vision.path import mean_step

if TYPE_CHECKING:
    from manifests.paste import PasteOptions
    from pipelines.paste.sample import Sample


def score(sample: Sample) -> None:
    """Score the layers before encoding, and the draw itself.

    Of the draw: ``visible_fraction`` (``Sample.least_visible``), ``path_speed`` (share of the
    width per frame, without the camera), ``motion`` (pixels a frame, with it), ``scale`` (clip
    pixels per source pixel), ``harmonise_strength``, and of the background ``camera_static`` and
    ``registration_residual``.
    """
    main = sample.placed[-1]
    sample.scores = score_layers(sample.layers) | {
        "visible_fraction": sample.least_visible,
        "path_speed": main.path.way / sample.options.size[1],
        "motion": mean_step(main.path),
        "scale": float(main.path.poses[:, 2].mean()) * main.item.scale,
        "harmonise_strength": max(placed.change.strength for placed in sample.placed),
        "camera_static": sample.background.static,
        "registration_residual": sample.background.residual,
    }


def check(sample: Sample) -> None:
    """Refuse a draw that breaks a rule."""
    reason = broken_rule(
        sample.scores,
        sample.options,
        moving=any(item.moving for item in sample.objects) or sample.background.static < 1,
        clipped=max(placed.clipped for placed in sample.placed),
        background=exposure(sample.layers[BACKGROUND]),
    )
    if reason is not None:
        raise Refused("draw", reason)


def exposure(frames: U8) -> float:
    """Share of pure black or white pixels (all channels <= 5 or >= 250) of the middle frame of
    uint8 ``[T, H, W, 3]``, every fourth row and column."""
    middle = frames[len(frames) // 2, ::4, ::4]
    return float(((middle <= 5).all(axis=2) | (middle >= 250).all(axis=2)).mean())


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
    foreground, alpha, *_ = (layers[name] for name in LAYERS)
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
    colour, alpha, back, blended = (layers[name][t] for name in LAYERS)
    soft = (alpha > 0) & (alpha < 255)
    a = alpha[soft][:, None] * np.float32(1 / 255)
    exact = a * colour[soft] + (1 - a) * back[soft]
    inside = float(np.abs(exact - blended[soft]).max(initial=0))
    solid, clear = ((alpha == value).view(np.uint8) for value in (255, 0))
    return max(
        inside,
        cv2.norm(blended, colour, cv2.NORM_INF, solid),
        cv2.norm(blended, back, cv2.NORM_INF, clear),
    )


def recomposition_error(clip: LayeredClip) -> float:
    """Mean ``|a F + (1 - a) B - blended|`` of all frames, in levels."""
    return float(np.abs(clip.recomposed().astype(np.int16) - clip.blended).mean())


def broken_rule(
    scores: Mapping[str, float],
    options: PasteOptions,
    *,
    moving: bool,
    clipped: float,
    background: float,
) -> str | None:
    """Why a draw is refused, or None.

    moving: whether something moves by itself. clipped: share of the object's pixels that the
    colour match drives to 0 or 255. background: share of its pixels that are black or white.
    """
    low, high = options.area_limits
    if not low <= scores["area_mean"] <= high:
        return f"area {scores['area_mean']:.3f} is outside {low:g}..{high:g}"
    if scores["visible_fraction"] < options.min_visible:
        return f"only {scores['visible_fraction']:.2f} of the object is visible in some frame"
    if not moving and scores["motion"] < options.min_motion:
        return f"{scores['motion']:.2f} pixels a frame is nearly no motion"
    if clipped > options.max_clipped:
        return f"matching colours would clip {clipped:.2f} of the object"
    lost = {
        "the background": background,
        "the object": scores["exposure_low"] + scores["exposure_high"],
    }
    for what, share in lost.items():
        if share > options.max_exposure:
            return f"{share:.2f} of {what} is pure black or white"
    return None


def encode_checked(
    clip: LayeredClip, quality: Mapping[str, float], *, crf: int, min_psnr: float, **rest: Any
) -> dict[str, Any]:
    """``encode_row`` with the scores after encoding; finer than ``crf`` where a layer needs it.

    A clip whose worst colour layer is below ``min_psnr`` dB is encoded again, 3 steps finer each
    time.
    """
    while True:
        row = encode_row(clip, quality=quality, crf=crf, **rest)
        if clip.kind == "image":
            return row
        scores = encoded_scores(row, clip)
        if scores["encoded_psnr"] >= min_psnr or crf <= 1:
            row["quality"] |= scores
            return row
        crf = max(1, crf - 3)


def encode_color_checked(frames: U8, fps: float, *, crf: int, min_psnr: float) -> bytes:
    """A colour cell of uint8 ``[T, H, W, 3]``, finer than ``crf`` where that is below ``min_psnr``
    dB; 0: not decoded again."""
    while True:
        cell = encode_color(frames, fps, crf=crf)
        if not min_psnr or crf <= 1 or psnr(_error(decode_color(cell), frames)) >= min_psnr:
            return cell
        crf = max(1, crf - 3)


def encoded_scores(row: Mapping[str, Any], clip: LayeredClip) -> dict[str, float]:
    """What the codecs did to a row: its cells decoded again.

    - ``encoded_error``: mean ``|a F + (1 - a) B - blended|`` of the decoded layers, first,
      middle and last frame, in levels.
    - ``encoded_psnr``: PSNR of the worst colour layer against what was encoded, dB.
    """
    back = decode_row(row)
    probes = sorted({0, back.num_frames // 2, back.num_frames - 1})
    worst = max(_error(back.layer(layer), clip.layer(layer)) for layer in PROMPTED)
    return {"encoded_error": recomposition_error(back.take(probes)), "encoded_psnr": psnr(worst)}


def _error(decoded: U8, frames: U8) -> float:
    """Mean squared difference, in levels."""
    difference = decoded.astype(np.int16) - frames
    return float(np.square(difference, dtype=np.int32).mean())


def psnr(squared: float) -> float:
    """dB of a mean squared error in levels."""
    return float(10 * np.log10(255.0**2 / max(squared, 1e-6)))
