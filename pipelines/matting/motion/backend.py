"""The weightless default: mattes what moves differently from the background, on plain OpenCV.

Camera motion, residual flow and a registered plate give evidence per superpixel; a graph over the
whole clip spreads it; the best mover is chosen; a convex cut finds its outline; then the evidence
is redone without the movers. Guided filtering makes the matte soft. The steps are in
``registration``, ``evidence``, ``graph``, ``decide`` and ``subject`` beside this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from pipelines.matting import (
    BACKDROP,
    CHOSEN,
    EARLIER,
    SEVERAL,
    Backdrop,
    Chosen,
    Earlier,
    Matte,
    check_frames,
)
from pipelines.matting.motion.decide import ColourModel, contrast_weights, cut, fill_holes, seeds
from pipelines.matting.motion.found import Found, by_hand, mattes, subjects
from pipelines.matting.motion.graph import Graph, build_graph
from pipelines.matting.motion.known import Known, from_chosen, from_earlier
from pipelines.matting.motion.subject import (
    Hypothesis,
    best_hypothesis,
    grow,
    keep_subject,
    motion_cues,
    warp_vote,
)
from pipelines.matting.stabilise import average_along_flow
from pipelines.vision.evidence import (
    Matches,
    PlateEvidence,
    backdrop_evidence,
    match,
    plate_evidence,
    prefer,
    residual_motion,
)
from pipelines.vision.numerics import dilate, guided_affine, single_thread, work_size
from pipelines.vision.registration import Registration, Tracks, register, track

_STATIC = 0.7  # share of frame pairs without camera motion that makes a camera static
_SETTLED = 0.985  # passes stop when a mask and the one before overlap this much
_CLEAR_MOTION = 3.0  # residual motion in pixels at which a mover is unmistakable
_FARTHEST = 6  # frames over which flow is tried for slow subjects
_CUT_ITERATIONS = 60
_CUT_STRENGTH = 2.0
_FOREIGN = 1.0  # cost of a pixel that equals the plate in a colour that no mover has
_SOFT_RADIUS = 5


@dataclass(frozen=True)
class Clip:
    """A clip at work size and what does not change between passes.

    ``lab8`` is uint8 Lab; ``guide`` is RGB in [0, 1]; ``texture`` says where flow can be trusted;
    ``matches`` join neighbouring frames, ``far`` those by whose flow motion is judged; ``backdrop``
    is what a known backdrop says; ``known`` where the subject is; ``others``: bool [N], what
    belongs to other subjects; ``alone``: each subject is wanted by itself.
    """

    gray: np.ndarray
    lab8: np.ndarray
    guide: np.ndarray
    texture: np.ndarray
    tracks: list[Tracks]
    matches: list[Matches]
    far: list[Matches]
    graph: Graph
    colours: ColourModel
    contrast: list[tuple[np.ndarray, np.ndarray]]
    backdrop: PlateEvidence | None
    known: Known | None
    others: np.ndarray
    alone: bool = False


@dataclass(frozen=True)
class Pass:
    """What one pass found: all movers and the subject, bool [T, h, w]; superpixels to ignore."""

    registration: Registration
    hypothesis: Hypothesis
    movers: np.ndarray
    subject: np.ndarray
    ignored: np.ndarray
    motion: np.ndarray
    plate: PlateEvidence
    first: PlateEvidence


class MotionMatting:
    """Mattes the salient mover of a clip without any network weights.

    ``work_area``: the clip is worked on at about this many pixels a frame (never more than twice
    enlarged); ``passes``: how often the evidence is redone at most; ``segments``: superpixels a
    frame. ``observe`` is called with every pass's result, to look inside.
    """

    name = "motion"
    version = "4"
    licence = "Apache-2.0"
    needs = frozenset({BACKDROP, EARLIER, CHOSEN, SEVERAL})

    def __init__(
        self,
        work_area: int = 432 * 288,
        passes: int = 3,
        segments: int = 700,
        observe: Callable[[Any], None] | None = None,
    ) -> None:
        if work_area < 32 * 32 or passes < 1 or segments < 16:
            raise ValueError(
                "motion needs work_area >= 1024, passes >= 1 and segments >= 16, got "
                f"{work_area}, {passes}, {segments}"
            )
        self.work_area = work_area
        self.passes = passes
        self.segments = segments
        self.observe = observe

    def __call__(
        self,
        frames: np.ndarray,
        backdrop: Backdrop | None = None,
        earlier: Earlier | None = None,
        chosen: Chosen | None = None,
        several: bool = False,
    ) -> Matte:
        """Matte uint8 [T, H, W, 3]; all zero with confidence 0 when nothing moves by itself.

        With a ``backdrop`` also those parts of a subject are found that stand still. Of several
        movers one that goes on from the ``earlier`` matte is preferred. What is ``chosen`` may
        stand still where its colours set it off.

        Confidence: ``matte_confidence``, the mean evidence inside minus outside;
        ``matte_agreement``, how well the threshold captures the seeds (F); ``matte_stability``, IoU
        of the last two passes; ``motion_contrast``, how much faster than the background the
        subject's liveliest part moves, in [-1, 1]; ``colour_separation``, 1 - overlap of the
        colours inside and out.
        """
        check_frames(frames)
        if len(frames) < 2 or min(frames.shape[1:3]) < 16:
            return Matte(np.zeros(frames.shape[:3], np.float32), {"matte_confidence": 0.0})
        with single_thread():
            clip = prepare(frames, self.work_area, self.segments, backdrop, earlier, chosen)
            found = subjects(clip, self._look, several)
            return mattes(frames, [(soften(clip, one.mask, frames), one) for one in found])

    def _look(self, clip: Clip) -> Found | None:
        """The subject of a clip, or None."""
        found, stability = self.iterate(clip)
        if found is None or not found.subject.any():
            return by_hand(clip)
        confidence = _confidence(clip, found)
        confidence["matte_stability"] = stability
        return Found(warp_vote(found.subject, clip.matches), confidence, found.hypothesis.score)

    def iterate(self, clip: Clip) -> tuple[Pass | None, float]:
        """Run passes until the mask settles: the last pass and its IoU with the one before."""
        last: Pass | None = None
        stability = 0.0
        for _ in range(self.passes):
            found = _one_pass(clip, last)
            if found is None:
                return None, 0.0
            if self.observe is not None:
                self.observe(found)
            if last is not None:
                union = int((found.subject | last.subject).sum())
                both = int((found.subject & last.subject).sum())
                stability = both / union if union else 0.0
            last = found
            if stability > _SETTLED:
                break
        return last, stability


def prepare(
    frames: np.ndarray,
    work_area: int,
    segments: int,
    backdrop: Backdrop | None,
    earlier: Earlier | None = None,
    chosen: Chosen | None = None,
) -> Clip:
    size = work_size(frames, work_area, enlarge=2.0)
    mode = cv2.INTER_AREA if work_area < frames[0, ..., 0].size else cv2.INTER_CUBIC
    rgb = np.stack([cv2.resize(f, size, interpolation=mode) for f in frames])
    gray = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in rgb])
    lab8 = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2LAB) for f in rgb])
    lab = lab8.astype(np.float32) * np.array([100 / 255, 1, 1], np.float32)
    tracks = track(gray)
    texture = np.stack([_texture(g) for g in gray])
    registration = register(gray, None, tracks)
    matches = match(gray, registration, 1)
    # Small pictures get fewer superpixels: below about 100 pixels they stop following outlines.
    graph = build_graph(lab, matches, min(segments, max(16, size[0] * size[1] // 100)))
    known = None if earlier is None else from_earlier(graph, gray, earlier)
    if chosen is not None:
        known = from_chosen(graph, chosen, frames.shape[1:3])
    return Clip(
        gray,
        lab8,
        rgb.astype(np.float32) / np.float32(255),
        texture,
        tracks,
        matches,
        _far_matches(gray, texture, registration, matches),
        graph,
        ColourModel(lab8),
        [contrast_weights(f, _CUT_STRENGTH) for f in lab],
        None if backdrop is None else backdrop_evidence(rgb, lab8, backdrop),
        known,
        np.zeros(len(graph.area), bool),
    )


def _far_matches(
    gray: np.ndarray, texture: np.ndarray, registration: Registration, matches: list[Matches]
) -> list[Matches]:
    """Flow over several frames if the fastest 2 % of what has texture is slow, else ``matches``."""
    length, _ = residual_motion(matches, registration, gray.shape)
    known = np.sort(length[:, ::4, ::4][texture[:, ::4, ::4] > 0.2])
    fast = float(known[-max(1, len(known) // 50) :].mean()) if len(known) else 0.0
    step = min(_FARTHEST, round(_CLEAR_MOTION / max(fast, 0.1)), (len(gray) - 1) // 2)
    return match(gray, registration, step) if step > 1 else matches


def _texture(gray: np.ndarray) -> np.ndarray:
    """float32 [h, w] in [0, 1]: how much structure there is for flow to hold on to."""
    strength = cv2.GaussianBlur(cv2.cornerMinEigenVal(gray, 5), (0, 0), 3)
    return np.clip(np.sqrt(np.maximum(strength, 0)) / 0.02, 0, 1)


def _one_pass(clip: Clip, last: Pass | None) -> Pass | None:
    """Evidence, subject and outline once; None if nothing moves by itself."""
    graph, shape = clip.graph, clip.gray.shape
    exclude = None if last is None else _excluded(last.movers)
    registration = register(clip.gray, exclude, clip.tracks)
    length, noise = residual_motion(clip.far, registration, shape, exclude)
    motion = length / (0.25 + 2 * noise[:, None, None])
    plate = plate_evidence(clip.lab8, registration, exclude)
    if clip.backdrop is not None:
        plate = prefer(clip.backdrop, plate)
    first = plate if last is None else last.first
    foreign, plate = _second_look(clip, motion > 3 if last is None else last.movers, plate, first)

    def seeds_without(ignored: np.ndarray) -> Any:
        return seeds(
            graph,
            motion,
            clip.texture,
            plate,
            static=registration.static > _STATIC,
            trust_plate=last is not None,
            foreign=foreign,
            ignored=ignored,
        )

    cues = motion_cues(graph, clip.matches, registration, shape)
    ignored = clip.others.astype(np.float64) if last is None else last.ignored
    attempts = 3 if last is None else 1
    best = best_hypothesis(graph, seeds_without, cues, ignored, attempts, clip.known, clip.alone)
    if best is None:
        return None
    movers = _outline(clip, best, plate, foreign, 0.0 if last is None else 0.5)
    subject, kept = keep_subject(graph, movers, best.chosen)
    movers |= graph.paint(best.ignored) > 0.5
    ignored = np.where(grow(graph, kept) & ~clip.others, 0, best.ignored)
    return Pass(registration, best, movers, subject, ignored, motion, plate, first)


def _excluded(movers: np.ndarray) -> np.ndarray | None:
    """Movers with a margin; None if that would leave too little of the picture."""
    radius = max(2, round(0.015 * min(movers.shape[1:])))
    exclude = dilate(movers, radius)
    return exclude if exclude.mean() < 0.8 else None


def _second_look(
    clip: Clip, movers: np.ndarray, plate: PlateEvidence, first: PlateEvidence
) -> tuple[np.ndarray, PlateEvidence]:
    """How foreign colours are to the movers, float32 [T, h, w] in [0, 1], and a filled plate.

    Flow carries blank walls and skies along with a mover that passes before them. Then no frame
    shows them free of movers, but the ``first`` plate, a median over everything, often has them
    right. It may contain the mover itself, so it counts only as far as the colour is foreign to
    those of the movers' pixels that differ from it.
    """
    difference = np.where(plate.seen, plate.difference, first.difference)
    changed = movers & (difference > 1.5)
    foreign = np.clip(-0.5 * clip.colours.ratio(changed, movers), 0, 1)
    steady = np.where(plate.seen, plate.steady, first.steady * foreign)
    return foreign, PlateEvidence(difference, plate.seen | first.seen, steady)


def _outline(
    clip: Clip, best: Hypothesis, plate: PlateEvidence, foreign: np.ndarray, trust: float
) -> np.ndarray:
    """Pixel-accurate mask of everything above the threshold, bool [T, h, w].

    ``trust``: how much difference from the plate counts, 0 while the movers are part of it.
    """
    field = clip.graph.paint(best.p)
    ratio = clip.colours.ratio(field > best.level)
    cost = _logit(np.float32(best.level)) - _logit(field) - np.float32(0.3) * ratio
    weight = trust + _FOREIGN * foreign * (plate.difference < 1.5)
    cost -= weight * np.clip(plate.difference - 1.5, -1.5, 1.5) * plate.steady
    cost = np.clip(cost, -4, 4)
    largest = 0.01 * cost[0].size
    masks = []
    for one, (horizontal, vertical) in zip(cost, clip.contrast, strict=True):
        u = cut(one, horizontal, vertical, (one < 0).astype(np.float32), _CUT_ITERATIONS)
        masks.append(fill_holes(u > 0.5, largest))
    return np.stack(masks)


def _logit(p: np.ndarray | np.float32) -> np.ndarray:
    return np.log((p + 1e-3) / (1 - p + 1e-3)).astype(np.float32)


def _confidence(clip: Clip, found: Pass) -> dict[str, float]:
    inside, best = found.subject, found.hypothesis
    field = clip.graph.paint(best.p)
    return {
        "matte_confidence": float(field[inside].mean() - field[~inside].mean()),
        "matte_agreement": best.agreement,
        "motion_contrast": motion_contrast(clip, found.motion, inside),
        "colour_separation": clip.colours.separation(inside),
    }


def motion_contrast(clip: Clip, motion: np.ndarray, inside: np.ndarray) -> float:
    """How much faster than the background the liveliest part of a subject moves, in [-1, 1].

    ``motion``: [T, h, w], of a ``Pass``; ``inside``: bool [T, h, w], the subject.
    """
    textured = ~inside & (clip.texture > 0.2)
    moving = float(np.percentile(motion[inside], 97))
    still = float(np.percentile(motion[textured if textured.any() else ~inside], 90))
    return (moving - still) / max(1e-6, moving + still)


def soften(clip: Clip, mask: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """A soft matte with the detail of the full frames, float32 [T, H, W], steady along the flow.

    The guided filter halves the contrast of a matte's edge; 1.5 restores it.
    """
    height, width = frames.shape[1:3]
    firm = average_along_flow(mask.astype(np.float32), clip.gray, clip.matches)
    soft = np.zeros(frames.shape[:3], np.float32)
    for t in np.flatnonzero(mask.any((1, 2))):
        slope, offset = guided_affine(clip.guide[t], firm[t], _SOFT_RADIUS, 1e-3)
        model = cv2.resize(cv2.merge([slope, offset]), (width, height))
        matte = (model[..., :3] * (frames[t] * np.float32(1 / 255))).sum(-1) + model[..., 3]
        soft[t] = np.clip((matte - 0.5) * 1.5 + 0.5, 0, 1)
    return soft
