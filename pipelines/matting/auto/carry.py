"""Fields of some frames carried along the flow to all others."""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.vision.evidence import Matches, grid


def carry(
    known: np.ndarray, keys: list[int], count: int, matches: list[Matches]
) -> tuple[np.ndarray, dict[tuple[int, int], float]]:
    """Fields of key frames, float32 [K, h, w], to all ``count`` frames [T, h, w] along the flow.

    Each frame gets the mean of what comes from the key frames before and after it, the nearer and
    the more consistent one weighing more. Also returns how much each two neighbouring key frames
    agree: the mean IoU of what one says with what comes from the other.
    """
    table = {(m.source, m.target): m.position for m in matches}
    shape = known.shape[1:]
    base = grid(*shape)
    total = np.zeros((count, *shape), np.float32)
    mass = np.full((count, *shape), 1e-6, np.float32)
    found: dict[tuple[int, int], list[float]] = {}
    for step in (1, -1):
        field = trust = np.zeros(shape, np.float32)
        last: int | None = None
        for t in range(count)[::step]:
            if last is not None:
                there, back = table[t, t - step], table[t - step, t]
                moved = cv2.remap(
                    cv2.merge([field, trust, *cv2.split(back)]),
                    there[..., 0],
                    there[..., 1],
                    cv2.INTER_LINEAR,
                    borderMode=cv2.BORDER_REPLICATE,
                )
                miss = ((moved[..., 2:] - base) ** 2).sum(-1)
                field, trust = moved[..., 0], 0.5 * moved[..., 1] * np.exp(-miss / 2)
            if t in keys:
                own = known[keys.index(t)]
                if last is not None:
                    same = overlap(own >= 0.5, field >= 0.5)
                    found.setdefault((min(t, last), max(t, last)), []).append(same)
                field, trust, last = own, np.ones(shape, np.float32), t
            if last is not None:
                total[t] += trust * field
                mass[t] += trust
    return total / mass, {pair: float(np.mean(same)) for pair, same in sorted(found.items())}


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two bool arrays, 1 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0
