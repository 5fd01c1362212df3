"""Evaluation: a model's samples, or files of anybody's, against the clips of a corpus."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layerflow.clip import (
    ALPHA,
    BACKGROUND,
    BLENDED,
    FOREGROUND,
    LAYERS,
    PROMPTED,
    LayeredClip,
    from_float,
    on_grey,
)
from layerflow.evaluation import metrics
from layerflow.evaluation.foregrounds import foreground_scores, recomposition_error
from layerflow.evaluation.predictions import EvaluateRequest, known_layers, pairs
from layerflow.evaluation.tables import tables
from layerflow.layer_set import matte_of
from layerflow.media.layer_stack import LayerStack, stack_of
from layerflow.model.layers import given_layers
from layerflow.outputs import local_output

if TYPE_CHECKING:
    from layerflow.evaluation.clip_scores import ClipScorer

SHOWN = 6  # clips on a contact sheet
MATTE = ("mad", "mse", "sad", "grad", "conn", "dtssd", "iou")

Scores = dict[str, float]


def run_evaluate(
    request: EvaluateRequest, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Write `clips.csv`, `metrics.json`, `tables.md` and `contact-TASK.png` to `out`.

    Returns what `metrics.json` holds. ValueError for a request that cannot be done.
    """
    from layerflow.media.contact_sheet import save_sheet

    local_output(request.out)
    if (request.model is None) == (request.predictions is None):
        raise ValueError("evaluate needs either --model or --predictions")
    if request.aesthetic is not None and request.clip is None:
        raise ValueError("--aesthetic is a head on a CLIP model: give --clip as well")
    known = known_layers(request).layers
    given = {task: given_layers(task, known) for task in request.tasks}
    if request.predictions is not None and len(given) != 1:
        raise ValueError("predictions are of one task: name it with --task")
    scorer = None
    if request.clip is not None:
        from layerflow.evaluation.clip_scores import ClipScorer

        scorer = ClipScorer(request.clip, request.aesthetic)
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for task, layers in given.items():
        shown: list[tuple[str, LayerStack]] = []
        for id_, predicted, truth in pairs(request, layers, skipped):
            scores = score_clip(predicted, truth, layers, scorer)
            rows.append({"task": task, "id": id_, **scores})
            shown += [(id_, truth), (f"{id_}, {task}", predicted)][: 2 * SHOWN - len(shown)]
            say(f"{task} {id_}: " + ", ".join(f"{k} {v:.4g}" for k, v in list(scores.items())[:6]))
        if shown:
            labels, clips = zip(*shown, strict=True)
            save_sheet(request.out / f"contact-{task}.png", clips, labels, height=96)
    if not rows:
        reasons = "; ".join(sorted(set(skipped.values()))) or "the corpus is empty"
        raise ValueError(
            f"{request.corpus}: nothing to evaluate; {len(skipped)} clips skipped ({reasons})"
        )
    return write_results(request, rows, skipped)


# ---- scores -----------------------------------------------------------------------------------


def score_clip(
    predicted: LayeredClip | LayerStack,
    truth: LayeredClip | LayerStack,
    given: Sequence[str],
    scorer: ClipScorer | None = None,
) -> Scores:
    """All measures that the task allows; names end in the layer where there is one for several.

    Several foregrounds are compared joined, and where both clips have several also one by one
    (``foreground_scores``). Of a model without alpha no matte is measured.
    """
    made, right = (
        clip if isinstance(clip, LayerStack) else stack_of(clip) for clip in (predicted, truth)
    )
    scores = score_joined(made.joined(), right.joined(), _joined_given(given, right), scorer)
    if not made.layers.mattes:
        for name in (*MATTE, "recomposition", "drift"):
            scores.pop(name, None)
    elif len(made.over) > 1:
        scores["recomposition"] = recomposition_error(made)
    if len(made.foregrounds) > 1 and len(right.foregrounds) > 1:
        scores |= foreground_scores(made, right, given)
    return scores


def _joined_given(given: Sequence[str], truth: LayerStack) -> tuple[str, ...]:
    """Which layers of the joined clip are given: the foreground, its matte, where all are."""
    own = {
        FOREGROUND: truth.foregrounds,
        ALPHA: tuple(map(matte_of, truth.foregrounds)),
        BACKGROUND: (BACKGROUND,),
        BLENDED: (BLENDED,),
    }
    return tuple(layer for layer in LAYERS if set(own[layer]) <= set(given))


def score_joined(
    predicted: LayeredClip,
    truth: LayeredClip,
    given: Sequence[str],
    scorer: ClipScorer | None = None,
) -> Scores:
    """All measures of clips with one foreground.

    With the blended layer given, matte and background have a true answer and are compared with
    it, the background where the true matte is above one half. Given layers are compared with
    what was given: that is what the autoencoder costs.
    """
    scores: Scores = {}
    if BLENDED in given:
        if ALPHA not in given:
            scores |= metrics.alpha_metrics(predicted.alpha, truth.alpha)
        if BACKGROUND not in given:
            hole = truth.alpha > 127
            behind = predicted.background, truth.background, hole
            scores["psnr_hole"] = metrics.masked_psnr(*behind)
            scores["ssim_hole"] = metrics.masked_ssim(*behind)
    for layer in given:
        if layer in (BACKGROUND, BLENDED):
            pair = predicted.layer(layer), truth.layer(layer)
            scores[f"given_psnr_{layer}"] = metrics.masked_psnr(*pair)
    layers = [predicted.layer(name) for name in LAYERS]
    scores["recomposition"] = metrics.recomposition_error(*layers)
    scores["drift"] = metrics.drift(predicted.alpha)
    pictures = {name: predicted.layer(name) for name in PROMPTED}
    pictures[FOREGROUND] = from_float(on_grey(predicted.foreground, predicted.alpha))
    for layer in (FOREGROUND, BLENDED):
        scores[f"dynamic_{layer}"] = metrics.dynamic_degree(pictures[layer], truth.fps)
    for layer in PROMPTED if scorer is not None else ():
        assert scorer is not None
        each = scorer.scores(pictures[layer], truth.prompts.get(layer))
        scores |= {f"{name}_{layer}": value for name, value in each.items()}
    return scores


# ---- results ----------------------------------------------------------------------------------


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Task -> measure -> mean, standard deviation and number of the finite values."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        names = dict.fromkeys(name for row in mine for name in row if name not in ("task", "id"))
        out[task] = {}
        for name in names:
            values = np.array([row[name] for row in mine if name in row], np.float64)
            values = values[np.isfinite(values)]
            if len(values):
                mean, spread = float(values.mean()), float(values.std())
                out[task][name] = {"mean": mean, "std": spread, "clips": len(values)}
    return out


def write_results(
    request: EvaluateRequest, rows: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]
) -> dict[str, Any]:
    request.out.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (request.out / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    summary: dict[str, Any] = {
        "model": None if request.model is None else request.model.name,
        "corpus": request.corpus.name,
        "seed": request.seed,
        "tasks": summarise(rows),
        "skipped": dict(skipped),
    }
    text = json.dumps(summary, indent=2, sort_keys=True) + "\n"
    (request.out / "metrics.json").write_text(text)
    (request.out / "tables.md").write_text(tables(summary["tasks"]))
    return summary
