"""Scores of a layered clip that need no ground truth. The quality gate reads them.

All scores are plain floats; what cannot be known for a clip is absent. Lengths are pixels at the
clip's own size unless a docstring says otherwise, colours are levels of 0..255, areas are shares of
the frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np

from layerflow.corpus.scores import names_of
from pipelines.mine.text import text_share
from pipelines.vision.numerics import dilate, single_thread, work_size
from pipelines.vision.plate import Plate

Flows = list[tuple[np.ndarray, np.ndarray]]

_FLOW_AREA = 320 * 212  # optical flow for scores is computed at about this many pixels


def score_clip(
    frames: np.ndarray,
    foreground: np.ndarray,
    alpha: np.ndarray,
    plate: Plate,
    confidence: Mapping[str, float] | None = None,
    *,
    flows: Flows | None = None,
    frame_scores: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """All scores of a mined clip, before encoding.

    ``frames`` and ``foreground``: uint8 [T, H, W, 3]; ``alpha``: float32 [T, H, W] in [0, 1] or
    uint8; ``plate``: of ``clean_plate``; ``confidence``: the matting backend's own figures.

    - ``recomposition_error``: mean |a F + (1 - a) B - I|, levels.
    - ``outside_fidelity``: mean |B - I| outside the dilated matte, levels; 0 by construction.
    - ``flicker``: mean |a(t) - warp(a(t-1))| inside the dilated matte where flow is consistent.
    - ``warp_iou``: IoU of the matte (>= 0.5) with the last one carried along the flow, there too.
    - ``newcomers``: largest share, over neighbouring frames, of a matte that the other one, carried
      along the flow, does not have and that does not enter at the border.
    - ``soft_fraction``: share of matte pixels (a > 0.05) with a < 0.95.
    - ``components``: mean number of connected parts above 2 % of the matte's area.
    - ``ghost``: how much of the subject's outline is left in the background: the regression
      coefficient of B's gradient along the matte's normal on I's, on the matte's edge; 0 = none,
      1 = the subject is still there.
    - the scores of ``score_frames``, which may come in as ``frame_scores``.
    - the others as ``layerflow.corpus.scores`` says.

    ``flows``: of ``neighbour_flows``, if they are known already.
    """
    if not frames.shape == foreground.shape == plate.background.shape:
        raise ValueError(
            f"layers differ in shape: frames {list(frames.shape)}, foreground "
            f"{list(foreground.shape)}, background {list(plate.background.shape)}"
        )
    if alpha.shape != frames.shape[:3]:
        raise ValueError(f"alpha {list(alpha.shape)} does not fit frames {list(frames.shape)}")
    matte = alpha.astype(np.float32) / np.float32(255) if alpha.dtype == np.uint8 else alpha
    with single_thread():
        flows = neighbour_flows(frames) if flows is None else flows
        scores = dict(score_frames(frames, flows) if frame_scores is None else frame_scores)
        scores.update(_layers(frames, foreground, matte, plate))
        scores.update(_shape(matte))
        scores.update(_stability(matte, flows))
    registration = plate.registration
    scores.update(
        unseen_fraction=plate.unseen_fraction,
        registration_residual=registration.residual * 480 / frames.shape[1],
        camera_static=registration.static,
        feature_survival=registration.survival,
    )
    scores.update({k: float(v) for k, v in (confidence or {}).items() if k in names_of("matting")})
    return {k: float(v) for k, v in scores.items() if math.isfinite(v)}


def score_frames(frames: np.ndarray, flows: Flows | None = None) -> dict[str, float]:
    """The cheap scores of uint8 [T, H, W, 3] frames alone, for filters before matting.

    - ``motion``: mean length of the optical flow between neighbouring frames, in pixels at a frame
      of 480 lines.
    - ``blur``: variance of the Laplacian of the grey picture at 480 lines at most, mean over
      frames; below about 50 a picture looks blurred.
    - ``exposure_low|high``: share of pixels with a luma of at most 5 | at least 250.
    - ``text``: share of the picture that looks like burnt-in text, see ``text.text_share``.
    """
    with single_thread():
        scores = _motion_and_exposure(frames, neighbour_flows(frames) if flows is None else flows)
        return {**scores, "text": text_share(frames)}


def neighbour_flows(frames: np.ndarray) -> Flows:
    """Small optical flow of neighbours: (t -> t-1, t-1 -> t) for t = 1.., float32 [h, w, 2]."""
    size = work_size(frames, _FLOW_AREA)
    gray = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    small = [cv2.resize(g, size, interpolation=cv2.INTER_AREA) for g in gray]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return [
        (flow.calc(small[t], small[t - 1], None), flow.calc(small[t - 1], small[t], None))
        for t in range(1, len(frames))
    ]


def seam(
    frame: np.ndarray, alpha: np.ndarray, next_frame: np.ndarray, next_alpha: np.ndarray
) -> float | None:
    """IoU of the mattes of two neighbouring frames, one carried along the flow to the other.

    uint8 [H, W, 3] and [H, W]. 0: another subject; 1: the same outline; None where both are empty.
    """
    with single_thread():
        ((back, _),) = neighbour_flows(np.stack([frame, next_frame]))
        height, width = back.shape[:2]
        carried, now = (
            cv2.resize(a, (width, height), interpolation=cv2.INTER_AREA)
            for a in (alpha, next_alpha)
        )
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        there = cv2.remap(carried, x + back[..., 0], y + back[..., 1], cv2.INTER_LINEAR) > 127
    union = int((there | (now > 127)).sum())
    return int((there & (now > 127)).sum()) / union if union else None


def _motion_and_exposure(frames: np.ndarray, flows: Flows) -> dict[str, float]:
    height, width = frames.shape[1:3]
    factor = min(1.0, 480 / height)
    blur, low, high = [], [], []
    for frame in frames:
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        low.append(float((gray <= 5).mean()))
        high.append(float((gray >= 250).mean()))
        if factor < 1:
            size = (max(1, round(width * factor)), max(1, round(height * factor)))
            gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
        blur.append(float(cv2.Laplacian(gray, cv2.CV_32F).var()))
    motion = 0.0
    if flows:
        lengths = [np.linalg.norm(back, axis=-1).mean() for back, _ in flows]
        motion = float(np.mean(lengths)) * 480 / flows[0][0].shape[0]
    return {
        "motion": motion,
        "blur": float(np.mean(blur)),
        "exposure_low": float(np.mean(low)),
        "exposure_high": float(np.mean(high)),
    }


def _layers(
    frames: np.ndarray, foreground: np.ndarray, matte: np.ndarray, plate: Plate
) -> dict[str, float]:
    """How well the layers explain the video, and what of the subject is left in the plate."""
    error, outside, outside_count = 0.0, 0.0, 0
    explained, outline = 0.0, 0.0
    for t in range(len(frames)):
        image = frames[t].astype(np.float32)
        back = plate.background[t].astype(np.float32)
        a = matte[t][..., None]
        mixed = np.rint(a * foreground[t] + (1 - a) * back)
        error += float(np.abs(mixed - image).mean())
        free = ~plate.hole[t]
        outside += float(np.abs(back - image)[free].sum()) / 3
        outside_count += int(free.sum())
        dx, dy = _gradient(cv2.GaussianBlur(matte[t], (0, 0), 1))
        length = np.hypot(dx, dy)
        edge = length > 0.1
        if edge.any():
            of_image, of_back = _along(image, dx, dy, edge), _along(back, dx, dy, edge)
            explained += float((of_image * of_back).sum())
            outline += float((of_image**2).sum())
    return {
        "recomposition_error": error / len(frames),
        "outside_fidelity": outside / max(1, outside_count),
        "ghost": max(0.0, explained / outline) if outline > 0 else 0.0,
    }


def _gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (
        cv2.Sobel(image, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8),
        cv2.Sobel(image, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8),
    )


def _along(image: np.ndarray, dx: np.ndarray, dy: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The image's derivative along the unit normal (dx, dy) at the pixels ``where``."""
    gx, gy = _gradient(image)
    nx, ny = dx[where][:, None], dy[where][:, None]
    return (gx[where] * nx + gy[where] * ny) / np.hypot(nx, ny)


def _shape(matte: np.ndarray) -> dict[str, float]:
    area = matte.mean((1, 2), dtype=np.float64)
    mean = float(area.mean())
    ring = np.ones(matte.shape[1:], bool)
    ring[1:-1, 1:-1] = False
    touched = matte > 0.05
    parts, sharpness = [], []
    for mask, a in zip(matte >= 0.5, matte, strict=True):
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        size = stats[1:, cv2.CC_STAT_AREA]
        parts.append(int((size > 0.02 * size.sum()).sum()) if len(size) else 0)
        dx, dy = _gradient(a)
        edge = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))) != mask
        if edge.any():
            sharpness.append(float(np.hypot(dx, dy)[edge].mean()))
    return {
        "area_mean": mean,
        "area_min": float(area.min()),
        "area_max": float(area.max()),
        "area_cv": float(area.std() / mean) if mean > 0 else 0.0,
        "soft_fraction": float(((matte < 0.95) & touched).sum() / max(1, int(touched.sum()))),
        "boundary_sharpness": float(np.mean(sharpness)) if sharpness else 0.0,
        "border_contact": float((matte[:, ring] >= 0.5).mean()),
        "components": float(np.mean(parts)),
    }


def _stability(matte: np.ndarray, flows: Flows) -> dict[str, float]:
    """Flicker, IoU and newcomers of the matte against itself carried along the flow."""
    if not flows:
        return {"flicker": 0.0, "warp_iou": 1.0, "newcomers": 0.0}
    height, width = flows[0][0].shape[:2]
    small = [cv2.resize(a, (width, height), interpolation=cv2.INTER_AREA) for a in matte]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    change, pixels, overlaps, newcomers = 0.0, 0, [], 0.0
    for t, (back, forward) in enumerate(flows, start=1):
        to_x, to_y = x + back[..., 0], y + back[..., 1]
        carried = cv2.remap(small[t - 1], to_x, to_y, cv2.INTER_LINEAR)
        returned = cv2.remap(forward, to_x, to_y, cv2.INTER_LINEAR) + back
        near = dilate((small[t] > 0.05) | (carried > 0.05), 2)
        use = near & (np.linalg.norm(returned, axis=-1) < 1)
        change += float(np.abs(small[t] - carried)[use].sum())
        pixels += int(use.sum())
        now, then = small[t] >= 0.5, carried >= 0.5
        union = int(((now | then) & use).sum())
        if union:
            overlaps.append(int((now & then & use).sum()) / union)
        ahead = cv2.remap(small[t], x + forward[..., 0], y + forward[..., 1], cv2.INTER_LINEAR)
        newcomers = max(newcomers, _new(now, then), _new(small[t - 1] >= 0.5, ahead >= 0.5))
    return {
        "flicker": change / max(1, pixels),
        "warp_iou": float(np.mean(overlaps)) if overlaps else 0.0,
        "newcomers": newcomers,
    }


def _new(now: np.ndarray, carried: np.ndarray) -> float:
    """Share of a matte that the neighbour's does not have and that is not at the border."""
    new = now & ~dilate(carried, 2)
    number, labels, _, _ = cv2.connectedComponentsWithStats(new.astype(np.uint8))
    if number == 1:
        return 0.0
    outer = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    inner = np.setdiff1d(np.arange(1, number), outer)
    return float(np.isin(labels, inner).sum() / now.sum())
