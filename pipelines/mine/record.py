"""The last steps: a window's prompts, and its row of the corpus."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerflow.clip import LayeredClip
from layerflow.corpus.table import clip_id, encode_row, origin
from layerflow.media.cells import encode_color
from layerflow.media.known import KNOWN, encode_known
from pipelines.captions.captioner import caption_clip
from pipelines.mine.chosen import marks
from pipelines.mine.known import known_pixels
from pipelines.mine.window import Window
from pipelines.vision.plate import clean_plate


def write_prompts(window: Window) -> None:
    """Take the prompts that are given, and ask a captioner, if there is one, for the others."""
    video = window.video
    window.prompts, flags = caption_clip(video.options.captions, window.layers, video.span.prompts)
    window.scores |= flags


def encode(window: Window) -> None:
    """Encode the row: media, prompts, origin, scores."""
    options, span, sha256 = window.video.options, window.video.span, window.video.findings.sha256
    recipe, start, end = window.video.recipe, window.place.start, window.place.end
    clip = LayeredClip(
        **window.layers,
        prompts=window.prompts,
        fps=options.fps,
        kind="mined",
        alpha_kind="soft",
        background_kind=window.plate.kind,
    )
    row = encode_row(
        clip,
        id=clip_id("mined", [sha256], [start, end, *_which(window)], recipe),
        origin=origin(
            span.uri,
            sha256,
            start=start,
            end=end,
            licence=span.licence,
            attribution=span.attribution,
        ),
        quality=window.scores,
        recipe=recipe,
        crf=options.crf,
    )
    own = {"subject": window.subject, KNOWN: known_cell(window)}
    window.row = row | shadow_cells(window) | own


def _which(window: Window) -> list[float]:
    """What tells the clip from others of the same window: its subject's number, or who was chosen
    by hand."""
    return [*([window.number] if window.number else []), *marks(window.video)]


def known_cell(window: Window) -> bytes | None:
    """What of the layers is more than made up; None where that is everything."""
    known = known_pixels(
        window.frames, window.foreground, window.alpha, window.plate, window.traces.leftovers
    )
    return encode_known(known, window.video.options.fps)


def shadow_cells(window: Window) -> dict[str, Any]:
    """Who owns the subject's shadow, and the background without it (and other leftovers).

    Outside the matte the background is the video itself, so it owns them.
    """
    if not window.traces.found:
        return {"shadow": "none", "plate": None, "objects": None, "draw": None}
    plate = clean_plate(
        window.frames,
        np.where(window.traces.mask, np.uint8(255), window.alpha),
        registration=window.plate.registration,
        inpainter=window.video.inpainter,
        backdrop=window.plate.backdrop,
    )
    options = window.video.options
    cell = encode_color(plate.background, options.fps, crf=options.crf)
    return {"shadow": "background", "plate": cell, "objects": None, "draw": None}
