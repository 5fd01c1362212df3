"""From votes to one subject: a fused field over the whole clip, its objects, and their outline.

Where motion and networks see the same thing networks count more, for they follow its outline;
where they see different things motion does, for it is rarely sure of what is no mover. Of what a
network adds to its mover motion keeps silent if that moves too: it just did not find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.matting.auto.carry import overlap
from pipelines.matting.auto.sources import Source
from pipelines.matting.motion.backend import Clip
from pipelines.matting.motion.decide import outline, sweep
from pipelines.matting.motion.graph import Graph, diffuse, parts_of
from pipelines.matting.motion.known import familiar, restricted
from pipelines.matting.motion.subject import grow, select, shape_score

_AGREE = (0.5, 1.0)  # overlaps of motion and networks, and what motion weighs at each
_MOVER = (1.5, 0.0)
_VOUCHED = (0.5, 0.65)  # overlaps up to which motion does not vouch for networks, and from which
_FLOOR = 0.05  # weight of a source that sees something but is not trusted: better than nothing
_LEVELS = (0.25, 0.6)  # thresholds that a network's field may have
_STILL = 0.3  # residual motion over its noise; what belongs to the background has less
_EDGE = 2.0  # pixels by which the outline of a mover is unsure


@dataclass(frozen=True)
class Fused:
    """``field``: float32 [T, h, w] in [0, 1], the mean vote at and beside the subject, else 0;
    ``mask``: bool [T, h, w], the subject; ``weights``: what each source counted, summing to 1;
    ``looks``: how much it looks like a subject."""

    field: np.ndarray
    mask: np.ndarray
    weights: dict[str, float]
    looks: float


@dataclass(frozen=True)
class _View:
    """A source's field with its own threshold at one half: [N] and float32 [T, h, w]."""

    p: np.ndarray
    field: np.ndarray


def fuse(
    clip: Clip,
    mover: Source,
    networks: Sequence[Source],
    motion: np.ndarray | None,
    before: np.ndarray | None = None,
) -> Fused | None:
    """The subject that a mover and networks agree on best; None where none of them sees one, or
    none where it was chosen by hand.

    ``motion``: residual motion over its noise, [T, h, w], None if nothing moves. ``before``: bool
    [T, h, w], the subject by an earlier look; what is mostly of it is of the subject.
    """
    graph, sources = clip.graph, [mover, *networks]
    views = [_of_mover(graph, mover), *(_of_network(graph, source) for source in networks)]
    if clip.others.any() or (clip.known is not None and clip.known.demanded):
        views = [_of_the_subject(clip, view) for view in views]
    weights = _weights(sources, views)
    if not weights.any():
        return None
    silent = np.zeros(len(graph.area), bool)
    if motion is not None:
        seen = np.mean([view.p for view in views[1:]], axis=0)
        silent = _moves_too(graph, views[0].p > 0.5, seen > 0.5, graph.mean(motion))
    everywhere = np.ones(len(graph.area), bool)
    p = _mixed([view.p for view in views], weights, [~silent, *[everywhere] * len(networks)])
    p = restricted(graph, np.where(clip.others, 0.0, p), clip.known)
    if not (p > 0.5).any():
        return None
    part = parts_of(graph, p > 0.5)
    chosen, looks = _best(clip, part, p)
    if not chosen.any():
        return None
    if before is not None:
        chosen |= lying_in(graph, part, before, 0.5)
    near = grow(graph, chosen) & ((part < 0) | chosen)
    # Beside the subject a source that was overruled there says nothing of the outline either.
    heard = [near & ~((view.p > 0.5) & ~chosen) for view in views]
    heard[0] &= ~silent
    field = _mixed([view.field for view in views], weights, [graph.paint(h) for h in heard])
    mask = outline(field, clip.colours, clip.contrast)
    if not mask.any():
        return None
    names = [source.name for source in sources]
    return Fused(field, mask, dict(zip(names, weights.tolist(), strict=True)), looks)


def _of_mover(graph: Graph, mover: Source) -> _View:
    soft = np.stack([cv2.GaussianBlur(f, (0, 0), _EDGE) for f in mover.field])
    return _View(graph.mean(mover.field), soft)


def _of_network(graph: Graph, source: Source) -> _View:
    """What a network sees, with the threshold that follows the clip's own outlines best.

    Where it is not sure its field stays below one half inside the subject too; spread over the
    graph, the level at which it ends at contours is found all the same.
    """
    mean = graph.mean(source.field)
    if mean.max() <= _LEVELS[0]:
        return _View(np.zeros(len(mean)), np.zeros_like(source.field))
    p = diffuse(graph, mean, 1 - mean)
    level = float(np.clip(sweep(graph, p, mean)[0], *_LEVELS))
    known = ([0.0, level, 1.0], [0.0, 0.5, 1.0])
    return _View(np.interp(p, *known), np.interp(source.field, *known).astype(np.float32))


def _of_the_subject(clip: Clip, view: _View) -> _View:
    """A view without what is not looked for: other subjects, and what was not chosen by hand. A
    source that sees nothing else has no say."""
    graph = clip.graph
    p = restricted(graph, np.where(clip.others, 0.0, view.p), clip.known)
    part = parts_of(graph, p > 0.5)
    names = np.unique(part[part >= 0])
    seen = np.isin(part, [n for n in names if familiar(graph, part == n, clip.known) is not False])
    return _View(p * seen, view.field * graph.paint(grow(graph, seen) & ((part < 0) | seen)))


def _weights(sources: Sequence[Source], views: Sequence[_View]) -> np.ndarray:
    """What each source counts, summing to 1; all zero if none sees anything.

    Networks share a weight of one: they have learnt the same thing and err together.
    """
    sees = np.array([bool((view.p > 0.5).any()) for view in views])
    share = np.array([1.0, *([1 / (len(views) - 1)] * (len(views) - 1))])
    together = overlap(views[0].field > 0.5, np.mean([v.field for v in views[1:]], axis=0) > 0.5)
    share[0] = np.interp(together, _AGREE, _MOVER)
    # What a sure mover confirms is trusted, even where the flow is too poor to compare its looks.
    vouched = [
        np.interp(overlap(views[0].field > 0.5, v.field > 0.5), _VOUCHED, (0, 1)) for v in views
    ]
    trust = np.maximum([s.trust for s in sources], sources[0].trust * np.array(vouched))
    weights = share * np.where(sees, np.maximum(trust, _FLOOR), 0)
    return weights / weights.sum() if weights.any() else weights


def _mixed(
    fields: Sequence[np.ndarray], weights: np.ndarray, heard: Sequence[np.ndarray]
) -> np.ndarray:
    """The weighted mean of fields, each where it is ``heard``; 0 where none is."""
    given = list(zip(weights, heard, fields, strict=True))
    total = sum(weight * where * field for weight, where, field in given)
    mass = sum(weight * where for weight, where, _ in given)
    return np.asarray(total / np.maximum(mass, 1e-6), np.float32)


def _moves_too(graph: Graph, mover: np.ndarray, seen: np.ndarray, speed: np.ndarray) -> np.ndarray:
    """Of what networks see beside the mover the parts that do not stand still, bool [N].

    The flow of a mover bleeds over its outline, so what touches it does not count.
    """
    part = parts_of(graph, seen & ~mover)
    far = ~grow(graph, mover)
    found = np.zeros(len(part), bool)
    for number in np.unique(part[part >= 0]):
        own = part == number
        if (own & far).any() and _median(speed[own & far], graph.area[own & far]) > _STILL:
            found |= own
    return found


def lying_in(graph: Graph, part: np.ndarray, mask: np.ndarray, share: float) -> np.ndarray:
    """The superpixels, bool [N], of the parts of which at least a share lies in a mask, bool
    [T, h, w]."""
    inside = graph.mean(mask.astype(np.float32)) * graph.area
    found = np.zeros(len(part), bool)
    for name in np.unique(part[part >= 0]):
        own = part == name
        found |= own & (inside[own].sum() >= share * graph.area[own].sum())
    return found


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    mass = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(mass, mass[-1] / 2)]])


def _best(clip: Clip, part: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, float]:
    """The superpixels of the parts that are the subject, bool [N], and how much the best one looks
    like it."""
    graph = clip.graph
    names = np.unique(part[part >= 0])
    looks = []
    for name in names:
        own = part == name
        evidence = float((p[own] * graph.area[own]).sum() / graph.area[own].sum())
        looks.append(evidence * shape_score(graph, own))
    scores, kept = select(graph, part, np.array(looks), clip.known, clip.alone)
    return np.isin(part, names[kept]), float(looks[scores.argmax()])
