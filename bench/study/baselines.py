"""What the study's networks are compared with: thresholds, and the mattes of the miner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.matting import Known, measure
from bench.study.clips import options
from bench.study.measure import edge_mad, measured
from layerflow.clip import ALPHA, BLENDED, LayeredClip
from layerflow.evaluation import metrics
from layerflow.evaluation.baselines import trivial_baselines
from pipelines.matting import make_backend
from pipelines.paste.job import draw_unit, recipe_of
from pipelines.paste.plan import make_plan
from pipelines.paste.sample import PasteContext

TUNING = 96  # training clips that thresholds are tuned on
BACKENDS = ("motion", "auto")


def baselines(out: Path, study: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Part -> baseline -> `iou`, and of the miner's backends `mad` and `edge_mad` too."""
    said = options(study, out / "media" / "video-coarse", out / "media" / "films", TUNING, 50)
    context = PasteContext(make_plan(said), said, recipe_of(said).hash)
    samples = draw_unit({"start": 0, "stop": TUNING}, context, [])
    tuning = [(sample.layers[BLENDED], sample.layers[ALPHA]) for sample in samples]
    found = {}
    for part, clips in measured(out).items():
        scores = trivial_baselines(tuning, [(clip.blended, clip.alpha) for clip in clips])
        found[part] = {name: {"iou": iou} for name, iou in scores.items()}
        for name in BACKENDS:
            found[part][f"miner: {name}"] = mined(clips, name)
    return found


def mined(clips: list[LayeredClip], name: str) -> dict[str, float]:
    """Means over the clips of what a matting backend of the miner finds."""
    backend, rows = make_backend(name), []
    for clip in clips:
        truth = clip.alpha.astype(np.float32) / 255
        known = Known("", clip.blended, truth, clip.background, clip.foreground)
        alpha = np.rint(measure(known, backend, True)[1] * 255).astype(np.uint8)
        rows.append(
            (
                metrics.alpha_iou(alpha, clip.alpha),
                metrics.alpha_mad(alpha, clip.alpha),
                edge_mad(alpha, clip.alpha),
            )
        )
    means = np.nanmean(np.array(rows), axis=0)
    return dict(zip(("iou", "mad", "edge_mad"), map(float, means), strict=True))
