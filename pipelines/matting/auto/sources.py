"""What each source says of a clip: the motion backend, and networks on some frames of it.

A source gives a field of foreground probability and how far it is to be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipelines.matting.auto.looks import Box, Looks, look
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
    looks: Looks, boxes: Sequence[Box], first: list[int], more: int, matches: list[Matches]
) -> Source:
    """A network's answer for a box of each frame of a clip, from looks at the ``first`` frames and
    at ``more`` times those between (``look``); 0 outside of the boxes.

    It is trusted as far as it is sure (inside minus outside) and as neighbouring looks are the same
    thing, seen along the flow.
    """
    seen = look(partial(looks.ask, boxes), first, more, len(boxes), matches)
    inside = seen.field >= 0.5
    if not inside.any() or inside.all():
        return Source(looks.name, seen.field, 0.0, seen.steady)
    margin = float(seen.field[inside].mean() - seen.field[~inside].mean())
    trust = float(smoothstep(_DOUBT, _SURE, np.asarray(margin * seen.steady)))
    return Source(looks.name, seen.field, trust, seen.steady)
