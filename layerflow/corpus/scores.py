"""The scores of clips: what each says, its unit, who gives it, and the quality gate's thresholds.

One entry is a whole score. From this table come the stored columns (in its order, so a new score
is its last entry), the presets of the quality gate, and what ``stats``, ``view`` and dataset cards
say of a score. A job that does not know a score leaves it null; no gate judges it then.

    python -m layerflow.corpus.scores        # the table as Markdown
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Range = tuple[float, float]
Known = Literal["frames", "matting", "layers", "prompts"]
PRESETS = ("loose", "coarse", "standard", "strict")


@dataclass(frozen=True)
class Score:
    """One score. meaning: one sentence. unit: ``share`` and ``ratio`` have none. known: ``frames``
    before matting, of the frames alone; ``matting`` by the backend itself; ``layers`` of the
    finished layers; ``prompts`` of the texts. loose, standard, strict: the least and the greatest
    value that each preset of the gate accepts, both inclusive; None: not judged. coarse: the same
    where that preset is not as ``standard``: clips for the base stage, of which the matte must be
    good and the background may be unseen, which the column ``known`` says.
    """

    name: str
    unit: str
    known: Known
    meaning: str
    loose: Range | None = None
    standard: Range | None = None
    strict: Range | None = None
    coarse: Range | Literal["standard"] | None = "standard"

    def limits(self, preset: str) -> Range | None:
        """The thresholds of a preset of ``PRESETS``."""
        found = getattr(self, preset)
        return self.standard if found == "standard" else found


_inf = math.inf
SCORES: tuple[Score, ...] = (
    Score("recomposition_error", "levels", "layers",
          "mean difference of alpha F + (1 - alpha) B from the video",
          (0.0, 4.0), (0.0, 1.5), (0.0, 1.0)),
    Score("outside_fidelity", "levels", "layers",
          "change of the background outside the dilated matte; 0 by construction",
          None, (0.0, 0.5), (0.0, 0.1)),
    Score("flicker", "share", "layers",
          "change of alpha against the frame before, carried along the flow"),
    Score("soft_fraction", "share", "layers", "matte pixels that are neither clear nor opaque",
          None, (0.0, 0.6), (0.0, 0.4)),
    Score("boundary_sharpness", "1/pixel", "layers",
          "mean gradient of alpha on its edge; 0.5 is a step of one pixel"),
    Score("area_mean", "share", "layers", "mean area of the matte in the frame",
          (0.005, 0.8), (0.01, 0.65), (0.02, 0.6), coarse=(0.01, 0.8)),
    Score("area_min", "share", "layers", "smallest area of the matte in any frame",
          (0.001, 1.0), (0.004, 1.0), (0.01, 1.0)),
    Score("area_max", "share", "layers", "largest area of the matte in any frame"),
    Score("area_cv", "ratio", "layers", "standard deviation of the matte's area / its mean",
          None, (0.0, 0.6), (0.0, 0.4)),
    Score("border_contact", "share", "layers", "outermost pixels of the frame under the matte",
          None, (0.0, 0.35), (0.0, 0.25)),
    Score("components", "count", "layers", "connected parts of the matte, mean over frames"),
    Score("ghost", "ratio", "layers",
          "how much of the subject's outline is left in the background; 1 is all of it",
          None, (0.0, 0.5), (0.0, 0.35)),
    Score("unseen_fraction", "share", "layers", "how much of the hole no frame showed",
          (0.0, 0.9), (0.0, 0.35), (0.0, 0.2), coarse=None),
    Score("registration_residual", "pixels", "layers",
          "median error of the camera motion at 480 lines", None, None, (0.0, 1.0)),
    Score("matte_confidence", "ratio", "matting",
          "the backend's evidence inside the matte minus that outside",
          (0.35, 1.0), (0.6, 1.0), (0.7, 1.0)),
    Score("matte_stability", "ratio", "matting", "IoU of the backend's last two passes",
          None, (0.8, 1.0), (0.85, 1.0), coarse=(0.7, 1.0)),
    Score("matte_agreement", "ratio", "matting",
          "how well the matte captures the seeds that it grew from",
          None, (0.65, 1.0), (0.7, 1.0), coarse=(0.6, 1.0)),
    Score("warp_iou", "ratio", "layers",
          "IoU of the matte with the frame before, carried along the flow",
          None, (0.7, 1.0), (0.85, 1.0)),
    Score("motion_contrast", "ratio", "matting",
          "how much faster than the background the subject's liveliest part moves",
          None, (0.3, 1.0), (0.4, 1.0)),
    Score("feature_survival", "share", "layers", "features that could be tracked consistently"),
    Score("colour_separation", "ratio", "matting", "1 - overlap of the colours inside and out"),
    Score("camera_static", "share", "layers", "frame pairs without camera motion"),
    Score("shadow_fraction", "ratio", "layers",
          "the subject's shadow in the background, area / the matte's"),
    Score("leftover_fraction", "ratio", "layers",
          "missed parts and reflections beside the matte, area / the matte's",
          None, (0.0, 0.03), (0.0, 0.02)),
    Score("newcomers", "share", "layers",
          "largest part of a matte that appears inside the picture from one frame to the next",
          None, (0.0, 0.15), (0.0, 0.1)),
    Score("bystander_fraction", "ratio", "layers",
          "who else is before the backdrop and stays in the background, area / the matte's",
          None, (0.0, 0.2), (0.0, 0.1), coarse=None),
    Score("motion", "pixels", "frames", "mean flow from frame to frame at 480 lines",
          (0.01, 80.0), (0.03, 40.0), (0.05, 30.0)),
    Score("blur", "levels^2", "frames",
          "variance of the Laplacian at 480 lines; below about 50 it looks blurred",
          (3.0, _inf), (8.0, _inf), (15.0, _inf)),
    Score("exposure_low", "share", "frames", "pixels that are all but black",
          (0.0, 0.9), (0.0, 0.75), (0.0, 0.6)),
    Score("exposure_high", "share", "frames", "pixels that are all but white",
          (0.0, 0.9), (0.0, 0.75), (0.0, 0.6)),
    Score("text", "share", "frames", "how much of the picture looks like burnt-in text",
          (0.0, 0.02), (0.0, 0.004), (0.0, 0.002)),
    Score("duplicate_distance", "ratio", "frames",
          "distance from an earlier window that it resembles; at most 1 is a duplicate",
          (0.5, _inf), (1.0, _inf), (1.5, _inf)),
    Score("equation_error", "levels", "layers",
          "greatest difference of the blended layer from the composite, before encoding"),
    Score("encoded_error", "levels", "layers",
          "mean difference of the blended layer from the composite, after encoding"),
    Score("encoded_psnr", "dB", "layers", "least fidelity of a colour layer after encoding"),
    Score("path_speed", "widths/frame", "layers", "speed of the drawn path"),
    Score("visible_fraction", "share", "layers", "least part of a pasted object inside the frame"),
    Score("scale", "ratio", "layers", "drawn size of a pasted object / its source's"),
    Score("harmonise_strength", "ratio", "layers", "how far colours were matched to the scene"),
    Score("fringe", "levels", "layers",
          "for later stages: background colour that soft edges still carry"),
    Score("prompt_flags", "count", "prompts", "prompts that are not to be trusted, of 3"),
    Score("aesthetic", "score", "prompts", "for later stages: an aesthetic model's opinion"),
    Score("text_alignment", "score", "prompts", "for later stages: how well prompt and clip fit"),
    *(Score(f"{source}_vote", "ratio", "matting", f"IoU of the matte with what {source} alone says")
      for source in ("motion", "u2netp", "isnet")),
    Score("seam", "ratio", "layers",
          "IoU of the matte's first frame with the last of the window before it in the shot"),
    Score("other_subjects", "count", "matting",
          "subjects with clips of their own that stay in the background"),
)  # fmt: skip

QUALITY_FIELDS = tuple(score.name for score in SCORES)
"""The stored scores, in the order of their columns."""

_BY_NAME = {score.name: score for score in SCORES}
_FIRST = (
    *("motion", "blur", "exposure_low", "exposure_high", "text", "duplicate_distance"),
    *("area_mean", "area_min", "area_cv", "border_contact", "recomposition_error"),
    *("outside_fidelity", "soft_fraction", "warp_iou", "newcomers", "leftover_fraction"),
    *("bystander_fraction", "ghost", "unseen_fraction", "registration_residual"),
    *("matte_confidence", "matte_agreement"),
)
"""Of a clip that fails several thresholds its rejected row names the first: these in this order,
then the others as they are stored."""


def thresholds(preset: str) -> dict[str, Range]:
    """Score -> (least, greatest) of a preset of the gate, in the order in which they are judged."""
    names = (*_FIRST, *(name for name in QUALITY_FIELDS if name not in _FIRST))
    found = {name: _BY_NAME[name].limits(preset) for name in names}
    return {name: limits for name, limits in found.items() if limits is not None}


def names_of(known: Known) -> tuple[str, ...]:
    """The scores that are known at one point, in stored order."""
    return tuple(score.name for score in SCORES if score.known == known)


def meaning(name: str) -> str:
    """What a score says, with its unit; empty for a name that is none."""
    score = _BY_NAME.get(name)
    if score is None:
        return ""
    return score.meaning if score.unit in ("share", "ratio") else f"{score.meaning} ({score.unit})"


def markdown(names: Iterable[str] = QUALITY_FIELDS) -> str:
    """A Markdown table: score, what it says, when it is known, the gate's thresholds."""
    rows = [["score", "says", "known from", *PRESETS], ["---"] * (3 + len(PRESETS))]
    for name in names:
        score = _BY_NAME[name]
        limits = (_shown(score.limits(preset)) for preset in PRESETS)
        rows.append([f"`{name}`", meaning(name), score.known, *limits])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shown(limits: Range | None) -> str:
    if limits is None:
        return ""
    low, high = limits
    return f"from {low:g}" if high == _inf else f"{low:g} to {high:g}"


if __name__ == "__main__":
    print(markdown())
