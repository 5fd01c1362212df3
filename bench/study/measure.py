"""The figures of one export: how well it takes unseen clips apart, and what it generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.study.clips import PARTS
from layerflow.clip import BLENDED, FOREGROUND, LayeredClip
from layerflow.corpus.table import Corpus
from layerflow.evaluation import metrics
from layerflow.evaluation.predictions import complete
from layerflow.media.contact_sheet import save_sheet
from layerflow.model import adapters
from layerflow.model.sample import load_pipeline
from pipelines.vision.numerics import dilate
from trainer.metrics import read

BATCH = 16
SHOWN = 6  # clips on a contact sheet
SOFT = (25, 230)  # levels of alpha that are neither clear nor opaque
EDGE = 1  # pixels around them that count as the edge


def measured(out: Path) -> dict[str, list[LayeredClip]]:
    """Part -> its clips."""
    corpora = {part: Corpus.open(out / "corpora" / part) for part in PARTS}
    return {part: [c.clip(i) for i in range(len(c))] for part, c in corpora.items()}


def of_export(
    export: Path,
    clips: Mapping[str, Sequence[LayeredClip]],
    said: Mapping[str, int],
    sheets: Path,
    gated: bool,
) -> dict[str, Any]:
    """`decompose`: part -> figures; `generate`: figures, at motion gate 0. gated: it has a motion
    LoRA; `still` are the figures of what it generates at gate 1."""
    pipe = load_pipeline(export)
    pipe.set_progress_bar_config(disable=True)
    found: dict[str, Any] = {"decompose": {}}
    for part, truths in clips.items():
        made = completed(pipe, truths, (BLENDED,), said["decompose_steps"])
        found["decompose"][part] = matte_figures(made, truths)
        show(sheets / f"decomposed-{part}.png", made, truths)
    wanted = [clip for part in clips.values() for clip in part][: said["generated"]]
    made = completed(pipe, wanted, (), said["generate_steps"])
    found["generate"] = look_figures(made)
    show(sheets / "generated.png", made, made)
    if gated:
        made = completed(pipe, wanted, (), said["generate_steps"], gate=1.0)
        found["still"] = look_figures(made)
        show(sheets / "generated at gate 1.png", made, made)
    return found


def completed(
    pipe: Any, clips: Sequence[LayeredClip], given: Sequence[str], steps: int, gate: float = 0.0
) -> list[LayeredClip]:
    """The clips' missing layers; clip i from seed i."""
    made: list[LayeredClip] = []
    for start in range(0, len(clips), BATCH):
        batch = clips[start : start + BATCH]
        seeds = range(start, start + len(batch))
        with adapters.motion_gate(pipe.transformer, torch.full((len(batch),), gate)):
            made += complete(pipe, batch, given, steps=steps, guidance=1.0, seeds=seeds)
    return made


def matte_figures(made: Sequence[LayeredClip], truths: Sequence[LayeredClip]) -> dict[str, float]:
    """Means over clips. iou of the matte; mad, and of it at soft edges; what is behind, dB."""
    pairs = list(zip(made, truths, strict=True))
    return {
        "iou": mean(metrics.alpha_iou(m.alpha, t.alpha) for m, t in pairs),
        "mad": mean(metrics.alpha_mad(m.alpha, t.alpha) for m, t in pairs),
        "edge_mad": mean(edge_mad(m.alpha, t.alpha) for m, t in pairs),
        "behind": mean(
            min(60.0, metrics.masked_psnr(m.background, t.background, t.alpha > 127))
            for m, t in pairs
        ),
    }


def edge_mad(alpha: np.ndarray, truth: np.ndarray) -> float:
    """1000 x mean |a - a*| where the true matte is soft, and next to it."""
    soft = (truth > SOFT[0]) & (truth < SOFT[1])
    edge = np.stack([dilate(one, EDGE) for one in soft])
    wrong = np.abs(alpha.astype(np.float64) - truth) / 255
    return float(1000 * wrong[edge].mean()) if edge.any() else float("nan")


def look_figures(clips: Sequence[LayeredClip]) -> dict[str, float]:
    """Means over clips: drift of the matte in pixels a frame; share of its pixels that are soft;
    its area; contrast of the foreground in it (standard deviation of levels)."""
    mattes = [clip.alpha for clip in clips]
    return {
        "drift": mean(metrics.drift(alpha) for alpha in mattes),
        "soft": mean(
            ((a > SOFT[0]) & (a < SOFT[1])).sum() / max(1, (a > SOFT[0]).sum()) for a in mattes
        ),
        "area": mean((a > 127).mean() for a in mattes),
        "contrast": mean(
            clip.layer(FOREGROUND)[clip.alpha > 127].std() if (clip.alpha > 127).any() else np.nan
            for clip in clips
        ),
    }


def losses(run: Path) -> dict[str, float]:
    """Task -> loss on fresh clips at the end of a run."""
    rows = read(run / "validation.csv")
    last = max(int(row["step"]) for row in rows)
    return {str(row["task"]): float(row["loss"]) for row in rows if int(row["step"]) == last}


def mean(values: Any) -> float:
    """Mean of what is a number."""
    return float(np.nanmean([float(value) for value in values]))


def show(path: Path, made: Sequence[LayeredClip], truths: Sequence[LayeredClip]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [
        f"IoU {metrics.alpha_iou(m.alpha, t.alpha):.2f}" if m is not t else "generated"
        for m, t in zip(made, truths, strict=True)
    ]
    shown = [replace(clip, prompts={}) for clip in made[:SHOWN]]
    save_sheet(path, shown, texts[:SHOWN], columns_per_layer=4, height=64)
