"""Measures of layers: mattes against truth, recomposition, holes, motion. One clip at a time.

Alpha arguments are ``[T, H, W]``, either uint8 (255 = opaque) or float in [0, 1]; colours are
uint8 ``[T, H, W, 3]``. ``a`` is the predicted matte, ``g`` the truth. Scales are those of the
video matting literature (Rhemann et al. 2009 for SAD, Grad and Conn; Erofeev et al. 2015,
videomatting.com, for dtSSD; Lin et al. 2021, RobustVideoMatting, for the factors):
MAD and MSE times 1000, SAD, Grad and Conn divided by 1000 and averaged over frames, dtSSD times
100. Lower is better for all of these. Every function raises ValueError when shapes differ.
"""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from layerflow.clip import U8, composite

Alpha = NDArray[Any]
F64 = NDArray[np.float64]

GRAD_SIGMA = 1.4
CONN_STEP = 0.1
CONN_IGNORE = 0.15


def as_unit(alpha: Alpha) -> F64:
    """uint8 or float alpha -> float64 in [0, 1] (float input is clamped)."""
    if alpha.dtype == np.uint8:
        return alpha.astype(np.float64) / 255.0
    if not np.issubdtype(alpha.dtype, np.floating):
        raise ValueError(f"alpha must be uint8 or float, not {alpha.dtype}")
    return np.clip(alpha.astype(np.float64), 0.0, 1.0)


def _pair(predicted: Alpha, truth: Alpha) -> tuple[F64, F64]:
    if predicted.shape != truth.shape or predicted.ndim != 3 or predicted.size == 0:
        raise ValueError(
            f"mattes must both be [T, H, W] and not empty, "
            f"not {list(predicted.shape)} and {list(truth.shape)}"
        )
    return as_unit(predicted), as_unit(truth)


def alpha_mad(predicted: Alpha, truth: Alpha) -> float:
    """``1000 * mean |a - g|`` over all pixels and frames."""
    a, g = _pair(predicted, truth)
    return float(np.abs(a - g).mean() * 1000)


def alpha_mse(predicted: Alpha, truth: Alpha) -> float:
    """``1000 * mean (a - g)^2`` over all pixels and frames."""
    a, g = _pair(predicted, truth)
    return float(((a - g) ** 2).mean() * 1000)


def alpha_sad(predicted: Alpha, truth: Alpha) -> float:
    """``sum |a - g| / 1000`` of a frame, averaged over frames. Whole image, no trimap."""
    a, g = _pair(predicted, truth)
    return float(np.abs(a - g).sum((1, 2)).mean() / 1000)


def _gaussian_derivative(sigma: float) -> tuple[F64, F64]:
    """Smoothing and derivative taps; their outer product has unit L2 norm."""
    reach = 0.01 * sigma * np.sqrt(2 * np.pi)
    half = int(np.ceil(sigma * np.sqrt(-2 * np.log(reach))))
    x = np.arange(-half, half + 1, dtype=np.float64)
    smooth = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    slope = -x / sigma**2 * smooth
    norm = np.sqrt(np.linalg.norm(smooth) * np.linalg.norm(slope))
    return smooth / norm, slope / norm


def _gradient_magnitude(image: F64) -> F64:
    smooth, slope = _gaussian_derivative(GRAD_SIGMA)
    across = cv2.sepFilter2D(image, -1, slope, smooth, borderType=cv2.BORDER_REPLICATE)
    down = cv2.sepFilter2D(image, -1, smooth, slope, borderType=cv2.BORDER_REPLICATE)
    return np.hypot(across, down)


def alpha_grad(predicted: Alpha, truth: Alpha) -> float:
    """``sum (|grad a| - |grad g|)^2 / 1000`` of a frame, averaged over frames.

    Gradients are Gaussian derivatives of sigma 1.4, the filter scaled to unit energy. The mattes
    are not stretched to [0, 1] first, so a matte that is too faint is not forgiven.
    """
    a, g = _pair(predicted, truth)
    frames = [
        ((_gradient_magnitude(x) - _gradient_magnitude(y)) ** 2).sum()
        for x, y in zip(a, g, strict=True)
    ]
    return float(np.mean(frames) / 1000)


def _largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=4
    )
    if count < 2:
        return np.zeros_like(mask)
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def alpha_conn(predicted: Alpha, truth: Alpha) -> float:
    """``sum |phi(a) - phi(g)| / 1000`` of a frame, averaged over frames.

    The source region of a level is the largest 4-connected component of the pixels at which both
    mattes reach it; levels are 0.1 apart. With l the highest level at which a pixel is still in
    the source region and d = a - l, phi(a) = 1 - d where d >= 0.15, else 1 (Rhemann et al. 2009,
    section 4.2, p = 1).
    """
    a, g = _pair(predicted, truth)
    levels = [round(i * CONN_STEP, 10) for i in range(1, round(1 / CONN_STEP) + 1)]
    total = 0.0
    for x, y in zip(a, g, strict=True):
        both = np.minimum(x, y)
        source = [_largest_component(both >= level - 1e-9) for level in levels]
        reached = np.logical_and.accumulate(source).sum(0)  # how many levels, from the lowest
        base = np.array([0.0, *levels])[reached]
        phi = [1 - np.where(z - base >= CONN_IGNORE, z - base, 0.0) for z in (x, y)]
        total += float(np.abs(phi[0] - phi[1]).sum())
    return total / len(a) / 1000


def alpha_dtssd(predicted: Alpha, truth: Alpha) -> float:
    """``100 * sqrt(mean ((a_t - a_t-1) - (g_t - g_t-1))^2)``, averaged over frame pairs.

    NaN for a clip of one frame, which has no motion to compare.
    """
    a, g = _pair(predicted, truth)
    if len(a) < 2:
        return float("nan")
    change = np.diff(a, axis=0) - np.diff(g, axis=0)
    return float(np.sqrt((change**2).mean((1, 2))).mean() * 100)


def alpha_iou(predicted: Alpha, truth: Alpha, threshold: float = 0.5) -> float:
    """Intersection over union of ``a > threshold`` and ``g > threshold`` over the whole clip.

    1 when both are empty.
    """
    a, g = _pair(predicted, truth)
    p, q = a > threshold, g > threshold
    union = int((p | q).sum())
    return float((p & q).sum() / union) if union else 1.0


def alpha_metrics(predicted: Alpha, truth: Alpha) -> dict[str, float]:
    """All matte measures of one clip: mad, mse, sad, grad, conn, dtssd, iou."""
    return {
        "mad": alpha_mad(predicted, truth),
        "mse": alpha_mse(predicted, truth),
        "sad": alpha_sad(predicted, truth),
        "grad": alpha_grad(predicted, truth),
        "conn": alpha_conn(predicted, truth),
        "dtssd": alpha_dtssd(predicted, truth),
        "iou": alpha_iou(predicted, truth),
    }


def recomposition_error(foreground: U8, alpha: U8, background: U8, blended: U8) -> float:
    """``mean |alpha*foreground + (1-alpha)*background - blended|`` in levels of 0..255."""
    again = composite(foreground, alpha, background)
    if again.shape != blended.shape:
        raise ValueError(f"blended is {list(blended.shape)}, the layers {list(again.shape)}")
    return float(np.abs(again.astype(np.int16) - blended).mean())


def masked_psnr(predicted: U8, truth: U8, mask: NDArray[np.bool_] | None = None) -> float:
    """``10 log10(255^2 / mean squared error)`` in dB over ``mask`` ``[T, H, W]`` (None: all).

    What lies behind the subject: background against truth where the true alpha is above 0.5.
    Infinite for equal pictures, NaN for an empty mask.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"shapes differ: {list(predicted.shape)} and {list(truth.shape)}")
    error = (predicted.astype(np.float64) - truth) ** 2
    chosen = error if mask is None else error[mask]
    if chosen.size == 0:
        return float("nan")
    mean = float(chosen.mean())
    return float("inf") if mean == 0 else float(10 * np.log10(255.0**2 / mean))


def masked_ssim(predicted: U8, truth: U8, mask: NDArray[np.bool_] | None = None) -> float:
    """Mean structural similarity over ``mask`` ``[T, H, W]`` (None: all); 1 for equal pictures.

    Wang et al. 2004, per channel: with Gaussian means m, variances v and covariance c of sigma
    1.5, ``(2 m_p m_t + C1)(2 c + C2) / ((m_p^2 + m_t^2 + C1)(v_p + v_t + C2))``, where
    C1 = (0.01 * 255)^2 and C2 = (0.03 * 255)^2. NaN for an empty mask.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"shapes differ: {list(predicted.shape)} and {list(truth.shape)}")
    maps = np.stack([_ssim_map(p, t) for p, t in zip(predicted, truth, strict=True)])
    chosen = maps if mask is None else maps[mask]
    return float(chosen.mean()) if chosen.size else float("nan")


def _ssim_map(left: U8, right: U8) -> F64:
    def blur(image: F64) -> F64:
        return cv2.GaussianBlur(image, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT)

    x, y = left.astype(np.float64), right.astype(np.float64)
    mx, my = blur(x), blur(y)
    vx, vy, c = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (2 * mx * my + c1) * (2 * c + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))


def dynamic_from_flows(flows: NDArray[np.floating], fps: float = 8.0) -> bool:
    """Whether a clip moves much, by VBench's rule, from flows ``[T-1, H, W, 2]`` in pixels.

    A pair of frames moves when the mean speed of its fastest 5 % of pixels is above
    ``6 * min(H, W) / 256``; a clip is dynamic when at least ``round(4 * T / 16)`` pairs move. The
    rule is for 8 frames a second; speeds are brought to that rate.
    """
    pairs, height, width = flows.shape[:3]
    speeds = np.sort(np.hypot(flows[..., 0], flows[..., 1]).reshape(pairs, -1), axis=1)[:, ::-1]
    fastest = speeds[:, : max(1, int(0.05 * height * width))].mean(1) * (fps / 8.0)
    moving = int((fastest > 6.0 * min(height, width) / 256.0).sum())
    return moving >= max(1, round(4 * (pairs + 1) / 16))


def dynamic_degree(frames: U8, fps: float = 8.0) -> float:
    """1 for a clip ``[T, H, W, 3]`` that moves much, else 0 (`dynamic_from_flows`).

    VBench takes its flow from RAFT, this from OpenCV's DIS, so figures compare among themselves.
    """
    if len(frames) < 2:
        return 0.0
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flows = [finder.calc(a, b, None) for a, b in itertools.pairwise(grey)]
    return float(dynamic_from_flows(np.stack(flows), fps))


def centroids(alpha: Alpha) -> F64:
    """Alpha-weighted centre of each frame, ``[T, 2]`` as (y, x) in pixels; NaN where empty."""
    a = as_unit(alpha)
    mass = a.sum((1, 2))
    mass = np.where(mass > 0, mass, np.nan)
    y = (a.sum(2) * np.arange(a.shape[1])).sum(1) / mass
    x = (a.sum(1) * np.arange(a.shape[2])).sum(1) / mass
    return np.stack([y, x], axis=1)


def drift(alpha: Alpha) -> float:
    """``|centre(last) - centre(first)| / (T - 1)``: net motion of a subject in pixels a frame.

    Jitter from frame to frame cancels, unlike in a mean frame difference. 0 when the first or
    last frame is empty or the clip has one frame: no subject, no motion.
    """
    if alpha.ndim != 3:
        raise ValueError(f"alpha must be [T, H, W], not {list(alpha.shape)}")
    if len(alpha) < 2:
        return 0.0
    centre = centroids(alpha[[0, -1]])
    step = float(np.hypot(*(centre[1] - centre[0]))) / (len(alpha) - 1)
    return step if np.isfinite(step) else 0.0
