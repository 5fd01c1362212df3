"""Which of a clip's movers is its subject, and the vote that makes a mask agree along the flow.

A mover is a connected set of superpixels. The subject is the one that is large, moves clearly,
persists, stands free of the border, and *is where its own motion carries it*: moving water or
leaves have flow inside but stay in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.matting.motion.decide import Seeds, sweep
from pipelines.matting.motion.graph import Graph, diffuse, parts_of
from pipelines.matting.motion.known import Known, familiar, restricted
from pipelines.vision.evidence import Matches, grid
from pipelines.vision.registration import Registration, project

KEEP = 0.35  # parts that score at least this share of the best one belong to the subject
STRANGER = 0.15  # times the score of a part that does not go on from the subject before the clip
_LEAST_SCORE = 0.01  # below this there is no subject, only errors of the flow


@dataclass(frozen=True)
class Cues:
    """What tells subjects from other movers.

    ``push``: [N, 2], displacement of every superpixel to the next frame beyond the camera's, in
    pixels; ``agreement``: [N] in [0, 1], how well flow there and back agrees; ``registration``: the
    camera motion; ``shape``: (T, h, w).
    """

    push: np.ndarray
    agreement: np.ndarray
    registration: Registration
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Hypothesis:
    """One reading of the clip: ``chosen`` bool [N] is the subject, ``ignored`` [N] other movers."""

    score: float
    seeds: Seeds
    p: np.ndarray
    level: float
    agreement: float
    chosen: np.ndarray
    ignored: np.ndarray


def best_hypothesis(
    graph: Graph,
    seeds_without: Callable[[np.ndarray], Seeds],
    cues: Cues,
    ignored: np.ndarray,
    attempts: int,
    known: Known | None = None,
    alone: bool = False,
) -> Hypothesis | None:
    """The reading with the best subject, or None if nothing moves by itself (where it must).

    ``seeds_without`` gives the evidence when some superpixels, weights [N] in [0, 1], are ignored.
    After each attempt its best mover is ignored too, so that a strong one cannot hide another.
    ``known``: where the subject is; ``alone``: see ``select``.
    """
    best: Hypothesis | None = None
    for _ in range(attempts):
        seeds = seeds_without(ignored)
        if not seeds.foreground.any():
            break
        p = restricted(graph, diffuse(graph, seeds.foreground, seeds.background), known)
        by_hand = known is not None and known.demanded
        mass = seeds.foreground * (p > 0) if by_hand else seeds.foreground
        level, agreement = sweep(graph, p, mass)
        inside = (p > level) & (ignored < 0.5)
        if not inside.any():
            break
        part = parts_of(graph, inside)
        names = np.unique(part[inside])
        looks = np.array([score_part(graph, part == n, p, cues) for n in names])
        scores, kept = select(graph, part, looks, known, alone)
        real = kept.any() and looks[scores.argmax()] > _LEAST_SCORE
        if real and (best is None or scores.max() > best.score):
            chosen = np.isin(part, names[kept])
            best = Hypothesis(
                float(scores.max()), seeds, p, level, agreement, chosen, ignored.copy()
            )
        strongest = grow(graph, part == names[scores.argmax()])
        ignored = np.maximum(ignored, strongest.astype(np.float64))
    return best


def motion_cues(
    graph: Graph, matches: list[Matches], registration: Registration, shape: tuple[int, int, int]
) -> Cues:
    """Measure the cues of every superpixel."""
    total = np.zeros((len(graph.area), 2))
    base = grid(*shape[1:]).reshape(-1, 2)
    for m in matches:
        if m.target != m.source + 1:
            continue
        camera = project(registration.between(m.source, m.target), base)
        residual = m.position.reshape(-1, 2) - camera
        labels = graph.labels[m.source].ravel()
        for i in (0, 1):
            total[:, i] += np.bincount(labels, residual[:, i], len(graph.area))
    push = total / graph.area[:, None]
    return Cues(push, graph.mean(_flow_agreement(matches, shape)), registration, shape)


def _flow_agreement(matches: list[Matches], shape: tuple[int, int, int]) -> np.ndarray:
    """float32 [T, h, w]: exp(-e^2 / 2), e the pixels by which flow there and back misses."""
    table = {(m.source, m.target): m.position for m in matches}
    total = np.zeros(shape, np.float32)
    number = np.zeros(shape[0], np.float32)
    base = grid(*shape[1:])
    for (source, target), position in table.items():
        home = cv2.remap(
            table[target, source],
            position[..., 0],
            position[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        total[source] += np.exp(-((home - base) ** 2).sum(-1) / 2)
        number[source] += 1
    return total / np.maximum(number, 1)[:, None, None]


def score_part(graph: Graph, part: np.ndarray, p: np.ndarray, cues: Cues) -> float:
    """How much a part, bool [N], looks like a subject.

    Relative size^0.75 x mean p x flow agreement^2 x persistence x exp(-3 x border contact) x
    centrality x (0.3 + 0.7 x travel); size is the root of its area, contact is relative to it.
    Movers have about 0.02 to 0.5, errors of the flow in a still scene below 0.005.
    """
    area = graph.area[part]
    total = float(area.sum())
    evidence = float((p[part] * area).sum()) / total
    steady = float((cues.agreement[part] * area).sum()) / total
    value = evidence * steady**2 * shape_score(graph, part)
    return float(value * (0.3 + 0.7 * _travel(graph, part, cues)))


def shape_score(graph: Graph, part: np.ndarray) -> float:
    """How much a part, bool [N], looks like a subject by size, place and persistence alone."""
    frames, height, width = graph.labels.shape
    area = graph.area[part]
    total = float(area.sum())
    size = np.sqrt(total / frames)
    persistence = len(np.unique(graph.frame[part])) / frames
    contact = float((graph.border[part] * np.sqrt(area)).sum()) / frames / size
    centre = (graph.centre[part] * area[:, None]).sum(0) / total
    offset = (centre / np.array([width, height]) - 0.5) * 2
    centrality = np.exp(-0.5 * (offset**2).sum())
    relative = (size / np.sqrt(height * width)) ** 0.75
    return float(relative * persistence * np.exp(-3 * contact) * centrality)


def select(
    graph: Graph, part: np.ndarray, looks: np.ndarray, known: Known | None, alone: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the parts of ``parts_of``, and which of them are the subject, by how much each
    ``looks`` like one.

    known: all that belongs to the subject before the clip stays, and strangers count less; if it
    was chosen by hand, they are none, and there may be nothing. alone: of the others only what is
    near the best part belongs to it, for each subject is wanted by itself.
    """
    names = np.unique(part[part >= 0])
    goes_on = [familiar(graph, part == name, known) for name in names]
    scores, kept = choose(looks, goes_on, known is not None and known.demanded)
    if alone and kept.any():
        kept &= [_near(graph, part, names[scores.argmax()], name) for name in names]
    return scores, kept


def choose(
    looks: np.ndarray, goes_on: Sequence[bool | None], demanded: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The same by what ``familiar`` says of each part."""
    stays, stranger = np.array([[one is True, one is False] for one in goes_on]).T
    scores = looks * np.where(stranger, 0.0 if demanded and stays.any() else STRANGER, 1.0)
    return scores, stays if demanded else (scores >= KEEP * scores.max()) | stays


def _near(graph: Graph, part: np.ndarray, best: int, other: int) -> bool:
    """Whether a part is beside the best one, no farther than two superpixels, in half of the frames
    in which both are there."""
    if best == other:
        return True
    around = grow(graph, grow(graph, part == best))
    count = graph.labels.shape[0]
    here, there = (np.bincount(graph.frame[part == n], minlength=count) > 0 for n in (best, other))
    touching = np.bincount(graph.frame[around & (part == other)], minlength=count) > 0
    both = here & there
    return bool(both.any() and touching[both].mean() >= 0.5)


def _travel(graph: Graph, part: np.ndarray, cues: Cues) -> float:
    """1 if the part moves against the background as the flow inside it says, down to 0 if not."""
    frames = cues.shape[0]
    index = np.flatnonzero(part)
    area, frame = graph.area[index], graph.frame[index]
    mass = np.bincount(frame, area, frames)

    def per_frame(values: np.ndarray) -> np.ndarray:
        sums = [np.bincount(frame, values[index, i] * area, frames) for i in (0, 1)]
        return np.stack(sums, axis=-1) / np.maximum(mass, 1)[:, None]

    centre, flow = per_frame(graph.centre), per_frame(cues.push)
    missed, path = np.zeros(2), 0.0
    for t in range(frames - 1):
        low, high = sorted((mass[t], mass[t + 1]))
        if low == 0 or low < 0.6 * high:  # parts of it come or go: the centre says nothing
            continue
        stayed = project(cues.registration.between(t, t + 1), centre[t : t + 1])[0]
        missed += centre[t + 1] - stayed - flow[t]
        path += float(np.hypot(*flow[t]))
    return float(np.clip(1 - np.hypot(*missed) / (path + 8), 0, 1))


def grow(graph: Graph, inside: np.ndarray) -> np.ndarray:
    """The superpixels ``inside``, bool [N], and those that touch them."""
    grown = inside.copy()
    first, second = graph.first[graph.spatial], graph.second[graph.spatial]
    grown[first[inside[second]]] = True
    grown[second[inside[first]]] = True
    return grown


def keep_subject(
    graph: Graph, mask: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The parts of a pixel mask, bool [T, h, w], that belong to the chosen superpixels.

    Returns the subject's mask and its superpixels, bool [N].
    """
    inside = graph.mean(mask.astype(np.float32)) > 0.5
    part = parts_of(graph, inside)
    count = len(graph.area)
    hit = np.bincount(part[inside], (graph.area * chosen)[inside], count)
    whole = np.bincount(part[inside], graph.area[inside], count)
    kept = inside & (hit > 0.2 * whole)[part]
    near = graph.paint(grow(graph, kept | chosen)) > 0.5
    subject = np.stack([_parts_within(m, n) for m, n in zip(mask, near, strict=True)])
    return subject, kept


def _parts_within(mask: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The connected parts of a bool [h, w] mask that lie in ``near`` by at least 30 %."""
    number, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    keep = np.bincount(parts[near], minlength=number) > 0.3 * stats[:, cv2.CC_STAT_AREA]
    keep[0] = False
    return keep[parts]


def warp_vote(mask: np.ndarray, matches: list[Matches], rounds: int = 2) -> np.ndarray:
    """Each frame's mask, bool [T, h, w], votes with its neighbours' carried along the flow.

    A frame's own vote counts 1.5, a neighbour's 1.
    """
    for _ in range(rounds):
        total = mask.astype(np.float32) * 1.5
        weight = np.full(len(mask), 1.5, np.float32)
        for m in matches:
            carried = cv2.remap(
                mask[m.target].astype(np.float32),
                m.position[..., 0],
                m.position[..., 1],
                cv2.INTER_LINEAR,
            )
            total[m.source] += carried
            weight[m.source] += 1
        mask = total > 0.5 * weight[:, None, None]
    return mask
