"""What each source says of a clip: the motion backend, and networks on some frames of it.

A source gives a field of foreground probability and how far it is to be trusted. Networks see every
fourth frame; between these their answer is carried along the flow, which is there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from pipelines.matting.stabilise import over_the_clip
from pipelines.vision.evidence import Matches, grid
from pipelines.vision.numerics import smoothstep

KEY_STEP = 4  # frames: a network may cost no more than a third of the rest
_DOUBT, _SURE = 0.5, 0.7  # confidence up to which mattes are mostly wrong, from which mostly right


class Network(Protocol):
    """A saliency network: ``name`` is also that of its vote."""

    name: str

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """Probabilities float32 [T, H, W] of uint8 [T, H, W, 3]."""
        ...


@dataclass(frozen=True)
class Source:
    """``field``: float32 [T, h, w] in [0, 1]; ``trust`` in [0, 1], of the whole of it; ``steady``
    in [0, 1], how well it agrees with itself."""

    name: str
    field: np.ndarray
    trust: float
    steady: float


def key_frames(count: int) -> list[int]:
    """The frames that networks see: the middle of every four."""
    return list(range(min(KEY_STEP // 2, count - 1), count, KEY_STEP))


def from_motion(mask: np.ndarray, confidence: float, stability: float) -> Source:
    """The motion backend's subject, bool [T, h, w], trusted as far as it trusts itself."""
    trust = float(smoothstep(_DOUBT, _SURE, np.asarray(confidence))) if mask.any() else 0.0
    return Source("motion", mask.astype(np.float32), trust, stability)


def from_network(
    network: Network, frames: np.ndarray, shape: tuple[int, int, int], matches: list[Matches]
) -> Source:
    """A network's answer at work size ``shape`` for uint8 frames [T, H, W, 3].

    It is trusted as far as it is sure (inside minus outside) and as its answers on neighbouring key
    frames are the same thing, seen along the flow.
    """
    keys = key_frames(len(frames))
    alpha = over_the_clip(network.predict(frames[keys]))
    size = (shape[2], shape[1])
    small = np.stack([cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in alpha])
    field, steady = carry(small, keys, shape, matches)
    inside = field >= 0.5
    if not inside.any() or inside.all():
        return Source(network.name, field, 0.0, steady)
    margin = float(field[inside].mean() - field[~inside].mean())
    trust = float(smoothstep(_DOUBT, _SURE, np.asarray(margin * steady)))
    return Source(network.name, field, trust, steady)


def carry(
    known: np.ndarray, keys: list[int], shape: tuple[int, int, int], matches: list[Matches]
) -> tuple[np.ndarray, float]:
    """Fields of key frames, float32 [K, h, w], to all frames [T, h, w] along the flow.

    Each frame gets the mean of what comes from the key frames before and after it, the nearer and
    the more consistent one weighing more. Also returns how much neighbouring key frames agree: the
    mean IoU of what one says with what comes from the other, 1 for a single key frame.
    """
    table = {(m.source, m.target): m.position for m in matches}
    base = grid(*shape[1:])
    total, mass = np.zeros(shape, np.float32), np.full(shape, 1e-6, np.float32)
    overlaps = []
    for step in (1, -1):
        field: np.ndarray | None = None
        trust = np.ones(shape[1:], np.float32)
        for t in range(shape[0])[::step]:
            if field is not None:
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
                if field is not None:
                    overlaps.append(overlap(own >= 0.5, field >= 0.5))
                field, trust = own, np.ones(shape[1:], np.float32)
            if field is not None:
                total[t] += trust * field
                mass[t] += trust
    return total / mass, float(np.mean(overlaps)) if overlaps else 1.0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two bool arrays, 1 if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0
