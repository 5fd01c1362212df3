"""Steps that make a window's layers: matte, clean plate, straight foreground, and their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from layerflow.media.cells import MediaError
from pipelines.inputs.listing import matte_beside
from pipelines.matting import (
    ALPHA,
    BACKDROP,
    CHOSEN,
    EARLIER,
    SEVERAL,
    Backdrop,
    Earlier,
    with_alpha,
)
from pipelines.matting.refine import refined
from pipelines.mine.backdrop import find_backdrop, fit_backdrop, is_still, shared_with
from pipelines.mine.prune import without_background
from pipelines.mine.score import score_clip, seam
from pipelines.mine.several import levels, tell_apart
from pipelines.mine.traces import find_traces
from pipelines.mine.window import Before, Window
from pipelines.readers.stills import OPAQUE, grey_of
from pipelines.vision.colour import straight_foreground
from pipelines.vision.plate import clean_plate

SHARED = 0.08  # of a matte that may be backdrop, else the subject became part of it
SURE = 0.6  # confidence of a matte whose subject is looked for in the next window


def read_given_matte(window: Window) -> None:
    """Read the matte that comes with the video, if the backend needs it.

    From the video beside it, or its own alpha channel; one that is opaque all over is none.
    """
    video, span = window.video, window.video.span
    if ALPHA not in video.backend.needs:
        return
    beside = None if span.remote else matte_beside(Path(span.location), Path(span.root))
    if beside is None and not video.decoder.probe(video.path).has_alpha:
        raise MediaError("no alpha channel, and no film of the matte beside it (NAME.mask.*)")
    window.given_matte = window.fetch(beside or video.path, "matte")
    if window.given_matte.min() >= OPAQUE:
        if beside is None:
            raise MediaError("its alpha channel is opaque all over: there is no matte in it")
        window.given_matte = np.stack([grey_of(frame) for frame in window.fetch(beside)])


def take_backdrop(window: Window) -> None:
    """Take the backdrop of the shot, in the light of each frame, if the camera stands still.

    It is found once a shot.
    """
    video, shot = window.video, window.place.shot
    if not video.findings.shots[shot] or not is_still(window.frames):
        return
    if video.latest_backdrop[0] != shot:
        video.latest_backdrop = shot, _backdrop_of_shot(window)
    backdrop = video.latest_backdrop[1]
    window.backdrop = None if backdrop is None else fit_backdrop(backdrop, window.frames)


def _backdrop_of_shot(window: Window) -> Backdrop | None:
    video, place = window.video, window.place
    times = video.findings.shots[place.shot]
    try:
        seen = video.decoder.fetch(video.path, times, *video.options.size, box=place.box)
    except MediaError:  # a window that needs a broken frame will say so itself
        return None
    return find_backdrop(seen)


def matte_frames(window: Window) -> None:
    """Matte the frames with the backend, which gets what it needs."""
    backend, frames = window.video.backend, window.frames
    if window.given_matte is not None:
        frames = with_alpha(frames, window.given_matte)
    window.before = next(iter(window.just_before), None)
    given: dict[str, Any] = {}
    if window.chosen is not None:
        given[CHOSEN] = window.chosen
    elif window.video.options.subjects == "each":
        given[SEVERAL] = True
    elif EARLIER in backend.needs and window.before and window.before.confidence >= SURE:
        given[EARLIER] = window.before.last
    matte = backend(frames, window.backdrop if BACKDROP in backend.needs else None, **given)
    window.alpha, window.confidence = levels(matte.alpha), matte.confidence
    if SEVERAL in given:
        tell_apart(window, matte.others)


def doubt_backdrop(window: Window) -> None:
    """Drop a backdrop that the subject became part of: too much of the matte equals it."""
    backdrop = window.backdrop
    if backdrop is not None and shared_with(backdrop, window.frames, window.alpha) > SHARED:
        window.backdrop = None
        if BACKDROP in window.video.backend.needs and window.number == 0:
            matte_frames(window)


def refine_matte(window: Window) -> None:
    """Refine the edge of the matte, if the job asks for it."""
    refiner = window.video.refiner
    if refiner is not None:
        window.alpha = refined(window.frames, window.alpha, refiner)


def make_plate(window: Window) -> None:
    """Make the clean plate, and again if parts of the matte turn out to be nothing but plate."""
    frames, inpainter, backdrop = window.frames, window.video.inpainter, window.backdrop
    window.plate = clean_plate(frames, window.alpha, inpainter=inpainter, backdrop=backdrop)
    window.alpha, pruned = without_background(frames, window.alpha, window.plate)
    if pruned:
        window.plate = clean_plate(frames, window.alpha, inpainter=inpainter, backdrop=backdrop)


def solve_foreground(window: Window) -> None:
    """Solve for the straight colour of the subject."""
    window.foreground = straight_foreground(window.frames, window.alpha, window.plate.background)


def score_layers(window: Window) -> None:
    """Score the layers without ground truth."""
    window.scores = score_clip(
        window.frames,
        window.foreground,
        window.alpha,
        window.plate,
        window.confidence,
        flows=window.flows,
        frame_scores=window.scores,
    )


def score_traces(window: Window) -> None:
    """Find and score what the subject leaves beside its matte: a shadow, missed parts."""
    traces = find_traces(window.frames, window.alpha, window.plate, window.others)
    window.traces = traces
    window.scores["shadow_fraction"] = traces.shadow_fraction
    window.scores["leftover_fraction"] = traces.leftover_fraction
    if traces.bystander_fraction is not None:
        window.scores["bystander_fraction"] = traces.bystander_fraction


def score_seam(window: Window) -> None:
    """Score how the matte goes on from the window before, and keep its end for the next one."""
    if window.before is not None:
        last = window.before.last
        score = seam(last.frame, last.alpha, window.frames[0], window.alpha[0])
        window.scores |= {} if score is None else {"seam": score}
    video, place = window.video, window.place
    confidence = window.scores.get("matte_confidence", 1.0)
    last = Earlier(window.frames[-1].copy(), window.alpha[-1].copy())
    own = Before(place.shot, place.end, last, confidence, window.name)
    video.ended = (*(video.ended if window.number else ()), own)
    if confidence >= SURE and last.alpha.any():
        video.sure = own


def judge_layers(window: Window) -> None:
    """Refuse a clip whose scores fail the quality gate."""
    window.refuse_by_gate("gate")
