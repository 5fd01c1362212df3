"""The subject of a clip, or each of several, and what can be said of one chosen by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipelines.matting import Matte
from pipelines.matting.motion.decide import outline
from pipelines.matting.motion.graph import parts_of
from pipelines.matting.motion.known import by_colour, familiar
from pipelines.matting.motion.subject import KEEP, warp_vote

if TYPE_CHECKING:
    from pipelines.matting.motion.backend import Clip

MOST = 6  # subjects of a clip
_TAKEN = 0.2  # of a superpixel under a subject's mask make it that subject's


@dataclass(frozen=True)
class Found:
    """A subject at work size: ``mask`` bool [T, h, w]; ``confidence``: of ``Matte``; ``looks``: how
    much it looks like a subject, by the backend's own measure."""

    mask: np.ndarray
    confidence: dict[str, float]
    looks: float


def subjects(
    clip: Clip, look: Callable[[Clip], Found | None], several: bool = False
) -> list[Found]:
    """The subject that ``look`` finds, if any; ``several``: each clear one, the clearest first.

    Another one is clear if it looks at least ``KEEP`` times as much like a subject as the first: so
    much as makes it a part of that where one subject is wanted.
    """
    found: list[Found] = []
    clip = replace(clip, alone=several)
    while len(found) < (MOST if several else 1):
        one = look(clip)
        if one is None or (found and one.looks < KEEP * found[0].looks):
            break
        found.append(one)
        own = clip.graph.mean(one.mask.astype(np.float32)) > _TAKEN
        clip = replace(clip, others=clip.others | own)
    return found


def mattes(frames: np.ndarray, found: Sequence[tuple[np.ndarray, Found]]) -> Matte:
    """The first of some soft mattes with the others behind it; an empty one where there is none."""
    if not found:
        return Matte(np.zeros(frames.shape[:3], np.float32), {"matte_confidence": 0.0})
    made = [Matte(alpha, one.confidence) for alpha, one in found]
    return replace(made[0], others=tuple(made[1:]))


def by_hand(clip: Clip) -> Found | None:
    """What stands out by colour where the subject was chosen by hand and nothing else sees one.

    No source of evidence agrees with it, so its ``matte_agreement`` and ``motion_contrast`` are 0.
    """
    p = by_colour(clip.graph, clip.colours, clip.known)
    if p is None:
        return None
    graph = clip.graph
    part = parts_of(graph, p > 0.5)
    names = np.unique(part[part >= 0])
    own = [name for name in names if familiar(graph, part == name, clip.known)]
    field = graph.paint(np.where(np.isin(part, own), p, 0.0))
    mask = warp_vote(outline(field, clip.colours, clip.contrast), clip.matches)
    if not own or not mask.any() or mask.all():
        return None
    confidence = {
        "matte_confidence": float(field[mask].mean() - field[~mask].mean()),
        "matte_agreement": 0.0,
        "motion_contrast": 0.0,
        "colour_separation": clip.colours.separation(mask),
    }
    return Found(mask, confidence, 0.0)
