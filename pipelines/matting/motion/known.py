"""Where a clip's subject is known to be: from the window before it, or chosen by hand.

Both are the same thing on the graph: superpixels of one frame. What goes on from the window before
is preferred; what was chosen by hand is demanded: nothing else is the subject.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.matting import Chosen, Earlier
from pipelines.matting.motion.decide import ColourModel
from pipelines.matting.motion.graph import Graph, diffuse, parts_of
from pipelines.vision.evidence import grid

_INSIDE = 0.5  # of a part's area on the frame must be where the subject is
_ROUNDS = 4  # of colours and diffusion
_RIVAL = 0.2  # evidence of another object outside of where the subject was chosen
_THEIRS = 0.35  # share below which a superpixel goes to the others: what is far from both stays
_FIRM = 10.0  # weight of what is certain
_WEAK = 0.05  # weight of colours on other frames
_CONTOUR = 1.3  # times the usual contrast between neighbours that the outline of a thing has


@dataclass(frozen=True)
class Known:
    """Where the subject is on ``frame``. ``field``: [N], how much of each superpixel; None if only
    points say. ``points``: superpixels of which one at least is the subject, ``away``: ones that
    are not. ``demanded``: it was chosen by hand.
    """

    frame: int
    field: np.ndarray | None
    demanded: bool = False
    points: tuple[int, ...] = ()
    away: tuple[int, ...] = ()


def from_earlier(graph: Graph, gray: np.ndarray, earlier: Earlier) -> Known | None:
    """Where the subject of the frame before the clip's first one is in that, along the flow.

    ``gray``: uint8 [T, h, w], the clip at work size.
    """
    size = (gray.shape[2], gray.shape[1])
    before = cv2.resize(
        cv2.cvtColor(earlier.frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA
    )
    matte = cv2.resize(earlier.alpha, size, interpolation=cv2.INTER_AREA)
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    there = (grid(*gray.shape[1:]) + engine.calc(gray[0], before, None)).astype(np.float32)
    field = np.zeros(gray.shape, np.float32)
    field[0] = cv2.remap(matte, there[..., 0], there[..., 1], cv2.INTER_LINEAR) > 127
    return Known(0, graph.mean(field)) if field[0].any() else None


def from_chosen(graph: Graph, chosen: Chosen, size: tuple[int, int]) -> Known:
    """The same of what was chosen by hand on frames of ``size``, height and width."""
    count, height, width = graph.labels.shape
    field = None
    if chosen.region is not None:
        whole = np.zeros((count, height, width), np.float32)
        region = chosen.region.astype(np.float32)
        whole[chosen.frame] = cv2.resize(region, (width, height), interpolation=cv2.INTER_AREA)
        field = graph.mean(whole)

    def at(places: tuple[tuple[float, float], ...]) -> tuple[int, ...]:
        return tuple(
            int(
                graph.labels[
                    chosen.frame,
                    min(height - 1, max(0, int(y * height / size[0]))),
                    min(width - 1, max(0, int(x * width / size[1]))),
                ]
            )
            for x, y in places
        )

    return Known(chosen.frame, field, True, at(chosen.points), at(chosen.away))


def familiar(graph: Graph, part: np.ndarray, known: Known | None) -> bool | None:
    """Whether a part, bool [N], is where the subject is known to be: by half of what it covers on
    that frame, and by its points. None, and no answer, where nothing is known."""
    if known is None:
        return None
    if part[list(known.away)].any() or (known.points and not part[list(known.points)].any()):
        return False
    if known.field is None:
        return True
    there = part & (graph.frame == known.frame)
    area = graph.area[there]
    return bool(len(area) and float(known.field[there] @ area) >= _INSIDE * area.sum())


def excluded(graph: Graph, known: Known | None) -> np.ndarray:
    """The superpixels, bool [N], that are not the subject for certain: on the frame on which it was
    chosen all that lies outside."""
    if known is None or not known.demanded or known.field is None:
        return np.zeros(len(graph.area), bool)
    return (graph.frame == known.frame) & (known.field < 0.05)


def restricted(graph: Graph, p: np.ndarray, known: Known | None) -> np.ndarray:
    """Evidence ``p``, [N] in [0, 1], without that of other objects than the one chosen by hand.

    On the frame of the choice these are what lies outside of the region, and what is at the points
    that are not on the subject. The graph carries both through the other frames, so that things
    which touch each other there are kept apart.
    """
    outside = excluded(graph, known)
    if known is None or not (outside.any() or known.away):
        return p
    here = graph.frame == known.frame
    own, rivals = p * (here & (known.field is not None) & ~outside), p * outside
    things = parts_of(graph, here & ~outside & (p > _RIVAL))
    for spots, theirs, seeds in (
        (known.points, known.away, own),
        (known.away, known.points, rivals),
    ):
        whole = set(things[list(spots)].tolist()) - set(things[list(theirs)].tolist()) - {-1}
        seeds[np.isin(things, list(whole))] = 1.0
        seeds[list(spots)] = 1.0
    own[list(known.away)] = 0.0
    if not (rivals > _RIVAL).any() or not own.any():
        return np.where(outside, 0.0, p)
    share = diffuse(graph, _FIRM * own, _FIRM * rivals)
    return np.where(outside | (share < _THEIRS), 0.0, p)


def by_colour(graph: Graph, colours: ColourModel, known: Known | None) -> np.ndarray | None:
    """What stands out by colour where the subject was chosen by hand, float64 [N] in [0, 1].

    For a subject that no other evidence sees: its colours are those that are more frequent inside
    of the region than outside on that frame, and the graph carries them through the clip. None
    where that has no outline: its border must have more contrast than neighbours have as a rule.
    """
    if known is None or not known.demanded or known.field is None:
        return None
    here = graph.frame == known.frame
    inside, outside = here & (known.field > 0.5), excluded(graph, known)
    elsewhere = graph.paint(~here) > 0
    chosen = inside
    p = np.zeros(len(graph.area))
    for _ in range(_ROUNDS):
        if not chosen.any():
            return None
        ratio = np.clip(graph.mean(colours.ratio(graph.paint(chosen) > 0, elsewhere)), -1, 1)
        front = np.maximum(ratio, 0) * np.where(inside, 1.0, np.where(here, 0.0, _WEAK))
        back = np.maximum(-ratio, 0) * np.where(here, 1.0, _WEAK) + outside
        front[list(known.points)], back[list(known.points)] = 1.0, 0.0
        front[list(known.away)], back[list(known.away)] = 0.0, 1.0
        p = np.where(outside, 0.0, diffuse(graph, front, back))
        chosen = inside & (p > 0.5)
    return p if chosen.any() and _stands_out(graph, here, p > 0.5) else None


def _stands_out(graph: Graph, here: np.ndarray, chosen: np.ndarray) -> bool:
    """Whether the border of superpixels on a frame has more contrast than is usual on it."""
    i, j = graph.first[graph.spatial], graph.second[graph.spatial]
    own = here[i]
    contrast = np.sqrt(((graph.lab[i] - graph.lab[j]) ** 2).sum(1))[own]
    border = (chosen[i] != chosen[j])[own]
    if not border.any() or border.all():
        return False
    return bool(contrast[border].mean() >= _CONTOUR * contrast[~border].mean())
