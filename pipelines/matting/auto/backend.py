"""Motion and every saliency network whose weights are there vote on one subject.

Motion finds nothing where nothing moves, networks take what is salient besides. Each gives a field
over the whole clip (``sources``); objects are chosen by all of them, then their outline (``fuse``).
Networks look twice: at whole frames, and then closely at the subject that was found so (``looks``).
The matte is made soft as that of the motion backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from layerflow.weights import known, path_of
from pipelines.engine.networks import network
from pipelines.matting import (
    BACKDROP,
    CHOSEN,
    EARLIER,
    MATTE,
    SEVERAL,
    Backdrop,
    Chosen,
    Earlier,
    Matte,
    check_frames,
)
from pipelines.matting.auto.carry import overlap
from pipelines.matting.auto.fuse import Fused, fuse, lying_in
from pipelines.matting.auto.looks import (
    KEY_STEP,
    SAME,
    WIDE_STEP,
    Box,
    Looks,
    Network,
    boxes_around,
    key_frames,
)
from pipelines.matting.auto.networks import ALONE, NAME, which_networks
from pipelines.matting.auto.sources import Source, from_motion, from_network
from pipelines.matting.motion.backend import (
    Clip,
    MotionMatting,
    Pass,
    motion_contrast,
    prepare,
    soften,
)
from pipelines.matting.motion.found import Found, by_hand, mattes, subjects
from pipelines.matting.motion.graph import parts_of
from pipelines.matting.motion.subject import grow, warp_vote
from pipelines.matting.onnx_session import OnnxMatting
from pipelines.matting.stabilise import matte_from_predictions
from pipelines.vision.numerics import single_thread

PREDICT = ("predict",)
_SURE = 0.5  # trust in motion from which few looks at whole frames will do
_MORE = 2  # times that networks look between looks that do not fit
_PASSES = 2  # of motion beside networks: the third costs as much as they do and adds less


class _Onnx(OnnxMatting):
    """A network of the registry under its name there."""

    def __init__(self, told: str, device: str) -> None:
        entry = known(told.partition("@")[0])
        super().__init__(path_of(entry), device, entry.preset)
        self.name = entry.name


class AutoMatting:
    """Mattes a clip by the vote of motion and networks; without networks it is ``motion``.

    ``model``: which networks, see ``which_networks``. ``device``: theirs. ``networks``: objects to
    use in place of those. ``observe`` is called with the sources of every clip, to look inside.
    """

    name = NAME
    version = "4"
    needs = frozenset({BACKDROP, EARLIER, CHOSEN, SEVERAL})
    asks = True

    def __init__(
        self,
        model: str | None = None,
        device: str = "cpu",
        networks: Sequence[Network] | None = None,
        observe: Callable[[Sequence[Source]], None] | None = None,
    ) -> None:
        self.observe = observe
        if networks is None:
            told = which_networks(model)
            each = [] if told == ALONE else told.split("+")
            networks = [network(MATTE, _Onnx, one, device, methods=PREDICT) for one in each]
        self.networks = tuple(networks)
        self.motion = MotionMatting(passes=_PASSES) if self.networks else MotionMatting()
        self.licence = "Apache-2.0; weights: " + (", ".join(n.name for n in networks) or "none")

    def __call__(
        self,
        frames: np.ndarray,
        backdrop: Backdrop | None = None,
        earlier: Earlier | None = None,
        chosen: Chosen | None = None,
        several: bool = False,
    ) -> Matte:
        """Matte uint8 [T, H, W, 3]; all zero with confidence 0 where no source sees a subject.

        Of several objects one that goes on from the ``earlier`` matte is preferred. What is
        ``chosen`` may be seen by its colours alone.

        Confidence: ``NAME_vote`` of ``motion`` and of each network, the IoU of what it alone would
        say with the matte; ``matte_agreement``, the mean vote, each weighing as far as it is
        trusted, and 0 if none is; ``matte_confidence``, the mean field inside minus outside, times
        that; ``matte_stability``, how steady what took part is; ``motion_contrast`` as of
        ``motion``, 0 where nothing moves by itself; ``colour_separation``.
        """
        check_frames(frames)
        if not self.networks:
            return self.motion(frames, backdrop, earlier, chosen, several)
        if len(frames) < 2 or min(frames.shape[1:3]) < 16:
            if chosen is not None:
                return mattes(frames, [])
            mean = np.mean([network.predict(frames) for network in self.networks], axis=0)
            return matte_from_predictions(frames, mean.astype(np.float32))
        with single_thread():
            area, segments = self.motion.work_area, self.motion.segments
            clip = prepare(frames, area, segments, backdrop, earlier, chosen)
            looks = [Looks(network, frames, clip.gray.shape[1:]) for network in self.networks]
            found = subjects(clip, partial(self._look, looks), several)
            return mattes(frames, [(soften(clip, one.mask, frames), one) for one in found])

    def _look(self, looks: Sequence[Looks], clip: Clip) -> Found | None:
        """The subject of a clip by motion and what networks say of it, or None."""
        found, stability = self.motion.iterate(clip)
        mover = _mover(clip, found, stability)
        motion = None if found is None else found.motion
        networks, fused = _agreed(clip, looks, mover, motion)
        if self.observe is not None:
            self.observe([mover, *networks])
        if fused is None:
            return by_hand(clip)
        confidence = _confidence(clip, motion, [mover, *networks], fused)
        return Found(fused.mask, confidence, fused.looks)


def _agreed(
    clip: Clip, looks: Sequence[Looks], mover: Source, motion: np.ndarray | None
) -> tuple[list[Source], Fused | None]:
    """What networks say of a subject that they looked at closely, and what comes of all votes.

    Where motion is sure of a subject they look at that. Unless all of them see the same there, they
    look at whole frames, and then at what was found in these.
    """
    size, boxes = looks[0].frames.shape[1:3], None
    sure, moves = mover.trust >= _SURE, mover.field >= 0.5
    if sure:
        boxes = boxes_around(moves, size)
        close = _closely(clip, looks, boxes, moves)
        if all(min(one.steady, overlap(one.field >= 0.5, moves)) >= SAME for one in close):
            return close, fuse(clip, mover, close, motion)
    whole = [Box(0, 0, *size)] * len(moves)
    step, more = (WIDE_STEP, 0) if sure else (KEY_STEP, _MORE)
    wide = _seen(clip, looks, whole, step, more)
    fused = fuse(clip, mover, wide, motion)
    if fused is None:
        return wide, None
    close = _closely(clip, looks, boxes_around(fused.mask, size, boxes), fused.mask)
    # One that sees nothing of it keeps its vote for what it sees elsewhere.
    heard = [c if c.trust else w for c, w in zip(close, wide, strict=True)]
    return heard, fuse(clip, mover, close, motion, fused.mask) or fused


def _closely(
    clip: Clip, looks: Sequence[Looks], boxes: Sequence[Box], mask: np.ndarray
) -> list[Source]:
    """What each network says of the subject of a mask, bool [T, h, w], in a box of each frame."""
    return [_at(clip, source, mask) for source in _seen(clip, looks, boxes, KEY_STEP, _MORE)]


def _seen(
    clip: Clip, looks: Sequence[Looks], boxes: Sequence[Box], step: int, more: int
) -> list[Source]:
    """What each network says of a box of each frame, from looks at every ``step`` frames."""
    first = key_frames(len(boxes), step)
    return [from_network(one, boxes, first, more, clip.matches) for one in looks]


def _mover(clip: Clip, found: Pass | None, stability: float) -> Source:
    if found is None or not found.subject.any():
        return from_motion(np.zeros(clip.gray.shape, bool), 0.0, 0.0)
    field = clip.graph.paint(found.hypothesis.p)
    margin = float(field[found.subject].mean() - field[~found.subject].mean())
    return from_motion(warp_vote(found.subject, clip.matches), margin, stability)


def _at(clip: Clip, source: Source, mask: np.ndarray) -> Source:
    """What a source says of one subject among others: without its parts of which less than a fifth
    lies in the mask, bool [T, h, w]; not trusted where no other is, for it may look elsewhere."""
    graph = clip.graph
    part = parts_of(graph, graph.mean((source.field >= 0.5).astype(np.float32)) > 0.5)
    own = lying_in(graph, part, mask, 0.2)
    away = grow(graph, (part >= 0) & ~own) & ~grow(graph, own)
    trust = source.trust if own.any() else 0.0
    return replace(source, field=source.field * graph.paint(~away), trust=trust)


def _confidence(
    clip: Clip, motion: np.ndarray | None, sources: Sequence[Source], fused: Fused
) -> dict[str, float]:
    mask, field = fused.mask, fused.field
    if clip.alone or (clip.known is not None and clip.known.demanded):
        sources = [_at(clip, source, mask) for source in sources]
    votes = {s.name: overlap(s.field >= 0.5, mask) for s in sources}
    total = max(1.0, sum(s.trust for s in sources))
    agreement = sum(s.trust * votes[s.name] for s in sources) / total
    confidence = {f"{name}_vote": vote for name, vote in votes.items()}
    confidence |= {
        "matte_confidence": float(field[mask].mean() - field[~mask].mean()) * agreement,
        "matte_agreement": agreement,
        "matte_stability": sum(s.steady * fused.weights[s.name] for s in sources),
        "colour_separation": clip.colours.separation(mask),
    }
    contrast = 0.0 if motion is None else motion_contrast(clip, motion, mask)
    return confidence | {"motion_contrast": contrast}
