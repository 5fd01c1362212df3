"""The layers of one window of video: matte, clean background, straight foreground, and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerflow.clip import LAYERS, U8
from pipelines.matting import Backdrop, Matte, Matter
from pipelines.mine.backdrop import fit_backdrop, shared_with
from pipelines.mine.prune import without_background
from pipelines.mine.score import Flows, score_clip
from pipelines.mine.traces import Traces, find_traces
from pipelines.vision.colour import straight_foreground
from pipelines.vision.inpaint import Inpainter
from pipelines.vision.plate import Plate, clean_plate

SHARED = 0.08  # of a matte that may be backdrop, else the subject became part of it


@dataclass(frozen=True)
class Mined:
    """One window's layers (LayeredClip fields) and scores, and what they were made with."""

    layers: dict[str, Any]
    scores: dict[str, float]
    plate: Plate
    traces: Traces


def make_layers(
    frames: U8,
    matter: Matter,
    fps: float,
    flows: Flows,
    early: Mapping[str, float],
    inpainter: Inpainter | None = None,
    backdrop: Backdrop | None = None,
) -> Mined:
    """Layers and scores of one window uint8 ``[T, H, W, 3]``.

    flows: of ``neighbour_flows``; early: scores that are known already; inpainter: by default
    OpenCV's; backdrop: of the shot, if it has one.
    """
    matte, alpha, backdrop = _matted(frames, matter, backdrop)
    plate = clean_plate(frames, alpha, inpainter=inpainter, backdrop=backdrop)
    alpha, pruned = without_background(frames, alpha, plate)
    if pruned:
        plate = clean_plate(frames, alpha, inpainter=inpainter, backdrop=backdrop)
    foreground = straight_foreground(frames, alpha, plate.background)
    scores = score_clip(
        frames, foreground, alpha, plate, matte.confidence, flows=flows, frame_scores=early
    )
    traces = find_traces(frames, alpha, plate)
    scores["shadow_fraction"] = traces.shadow_fraction
    scores["leftover_fraction"] = traces.leftover_fraction
    if traces.bystander_fraction is not None:
        scores["bystander_fraction"] = traces.bystander_fraction
    layers = {
        **dict(zip(LAYERS, (foreground, alpha, plate.background, frames), strict=True)),
        "fps": fps,
        "kind": "mined",
        "alpha_kind": "soft",
        "background_kind": plate.kind,
    }
    return Mined(layers, scores, plate, traces)


def _matted(
    frames: U8, matter: Matter, backdrop: Backdrop | None
) -> tuple[Matte, U8, Backdrop | None]:
    """The matte, its alpha uint8 ``[T, H, W]``, and the backdrop if it is of use for this clip."""
    fitted = None if backdrop is None else fit_backdrop(backdrop, frames)
    uses = fitted is not None and getattr(matter, "uses_backdrop", False)
    matte = matter(frames, fitted) if uses else matter(frames)
    alpha = _levels(matte)
    if fitted is not None and shared_with(fitted, frames, alpha) > SHARED:
        fitted = None
        if uses:
            matte = matter(frames)
            alpha = _levels(matte)
    return matte, alpha, fitted


def _levels(matte: Matte) -> U8:
    return np.rint(np.clip(matte.alpha, 0.0, 1.0) * 255.0).astype(np.uint8)
