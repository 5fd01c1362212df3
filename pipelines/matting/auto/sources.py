"""What each source says of a clip: the motion backend, and networks on some frames of it.

A source gives a field of foreground probability and how far it is to be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.matting.auto.looks import Box, Network, look
from pipelines.vision.evidence import Matches
from pipelines.vision.numerics import smoothstep

_DOUBT, _SURE = 0.5, 0.7  # confidence up to which mattes are mostly wrong, from which mostly right


@dataclass(frozen=True)
class Source:
    """``field``: float32 [T, h, w] in [0, 1]; ``trust`` in [0, 1], of the whole of it; ``steady``
    in [0, 1], how well it agrees with itself."""

    name: str
    field: np.ndarray
    trust: float
    steady: float


def from_motion(mask: np.ndarray, confidence: float, stability: float) -> Source:
    """The motion backend's subject, bool [T, h, w], trusted as far as it trusts itself."""
    trust = float(smoothstep(_DOUBT, _SURE, np.asarray(confidence))) if mask.any() else 0.0
    return Source("motion", mask.astype(np.float32), trust, stability)


def from_network(
    network: Network,
    frames: np.ndarray,
    boxes: Sequence[Box],
    first: list[int],
    more: int,
    shape: tuple[int, int, int],
    matches: list[Matches],
) -> Source:
    """A network's answer at work size ``shape`` for a box of each frame, uint8 [T, H, W, 3], from
    looks at the ``first`` frames and at ``more`` times those between (``look``); 0 outside of the
    boxes.

    It is trusted as far as it is sure (inside minus outside) and as neighbouring looks are the same
    thing, seen along the flow.
    """

    def ask(wanted: list[int]) -> np.ndarray:
        return _asked(network, frames, boxes, wanted, shape[1:])

    seen = look(ask, first, more, shape[0], matches)
    inside = seen.field >= 0.5
    if not inside.any() or inside.all():
        return Source(network.name, seen.field, 0.0, seen.steady)
    margin = float(seen.field[inside].mean() - seen.field[~inside].mean())
    trust = float(smoothstep(_DOUBT, _SURE, np.asarray(margin * seen.steady)))
    return Source(network.name, seen.field, trust, seen.steady)


def _asked(
    network: Network,
    frames: np.ndarray,
    boxes: Sequence[Box],
    wanted: list[int],
    size: tuple[int, int],
) -> np.ndarray:
    """Probabilities float32 [K, h, w] of some frames; boxes of one size are asked for together."""
    found = np.zeros((len(wanted), *size), np.float32)
    whole = np.zeros(frames.shape[1:3], np.float32)
    for extent in dict.fromkeys((boxes[t].height, boxes[t].width) for t in wanted):
        places = [i for i, t in enumerate(wanted) if (boxes[t].height, boxes[t].width) == extent]
        shown = np.stack([frames[wanted[i]][boxes[wanted[i]].part] for i in places])
        for i, answer in zip(places, network.predict(shown), strict=True):
            whole[:] = 0
            whole[boxes[wanted[i]].part] = answer
            found[i] = cv2.resize(whole, size[::-1], interpolation=cv2.INTER_AREA)
    return found
