"""Prompts from a vision-language model: one request a layer, checked, asked again, else flagged.

A captioner answers requests; which one it is (a local model or an endpoint) is the manifest's
affair. The subject is named first, so that the background's prompt can be checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import cv2
import numpy as np

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, PROMPTED, U8
from layerflow.media.frame_rate import evenly
from layerflow.plugins import Plugins
from manifests.mine import Captions
from pipelines.captions.checks import clean_prompt, find_problems, subject_nouns
from pipelines.captions.request import Captioner, CaptionError, Request
from pipelines.engine.networks import network
from pipelines.inputs.prompts import MAX_PROMPT_CHARS, TEMPLATE

CAPTION = "caption"  # the step whose actors may hold one
CAPTIONERS = Plugins(
    "layerflow.captioners",
    "captioner",
    {
        "local": "pipelines.captions.local:VlmCaptioner",
        "endpoint": "pipelines.captions.endpoint:EndpointCaptioner",
    },
    ("name", "licence", "answer", "check"),
)
"""Classes of ``Captioner``, made of ``Captions``: ours, and those of installed packages."""

_RULES = (
    "Answer with one paragraph of plain text, at most 80 words, in the present tense. Describe "
    "what is there and how it moves. Do not mention images, frames, videos, watermarks or captions."
)
ASK_NAME = (
    "These are moments of one video, in order; everything but the subject was painted grey. Name "
    "the subject with one or two nouns, such as: dog. Answer with the nouns only."
)
ASK = {
    FOREGROUND: "These are moments of one video, in order; everything but the subject was "
    "painted grey. Describe only the subject: what it is, how it looks, what it does. Say nothing "
    "about what is behind it. " + _RULES,
    BACKGROUND: "These are moments of one video, in order. Describe the place: what is in it, "
    "the light, how the camera moves. " + _RULES,
    BLENDED: "These are moments of one video, in order. Describe the whole scene: the subject, "
    "what it does, and the place that it is in. " + _RULES,
}


@lru_cache(maxsize=2)
def make_captioner(options: Captions) -> Captioner:
    """The captioner of a manifest, one a process. Raises ValueError for one that cannot start."""
    name = options.captioner or ("local" if options.url is None else "endpoint")
    return cast(Captioner, CAPTIONERS.make(name, {}, {"options": options}))


def caption_clip(
    options: Captions | None, layers: Mapping[str, Any], given: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, float]]:
    """The prompts of one clip, and ``prompt_flags``: how many of them are not to be trusted.

    ``layers``: uint8 arrays ``foreground``, ``background``, ``blended`` [T, H, W, 3] and ``alpha``
    [T, H, W]. ``given``: prompts of a sidecar or table; only those that still are the template's
    are asked for. A layer whose prompt fails its checks ``options.retries`` times keeps the last
    answer and is flagged; without any answer it keeps the template and is flagged.
    Without ``options`` nothing is asked and nothing is scored.
    """
    prompts = dict(given)
    wanted = [layer for layer in PROMPTED if given.get(layer) == TEMPLATE[layer]]
    if options is None:
        return prompts, {}
    if not wanted:
        return prompts, {"prompt_flags": 0.0}
    pictures = {layer: show(layers, layer, options.frames, options.side) for layer in PROMPTED}
    captioner: Captioner = network(CAPTION, make_captioner, options, methods=("answer",))
    try:
        flagged = _ask_all(captioner, options, pictures, wanted, prompts)
    except CaptionError:
        flagged = [layer for layer in wanted if prompts[layer] == TEMPLATE[layer]]
    return prompts, {"prompt_flags": float(len(flagged))}


def _ask_all(
    captioner: Captioner,
    options: Captions,
    pictures: Mapping[str, tuple[U8, ...]],
    wanted: list[str],
    prompts: dict[str, str],
) -> list[str]:
    """Fill ``prompts`` for the layers ``wanted``; returns the layers that still have problems."""
    subject: frozenset[str] = frozenset()
    if BACKGROUND in wanted:
        name = captioner.answer([Request(pictures[FOREGROUND], ASK_NAME)])[0]
        subject = subject_nouns(name)
    texts = {layer: ASK[layer] for layer in wanted}
    if subject:
        hidden = " or ".join(sorted(subject))
        texts[BACKGROUND] += f" There is no {hidden} in it; do not use these words."
    left = list(wanted)
    for _ in range(1 + options.retries):
        asked = [Request(pictures[layer], texts[layer]) for layer in left]
        failed = []
        for layer, answer in zip(left, captioner.answer(asked), strict=True):
            text = clean_prompt(answer)
            if text:
                prompts[layer] = text[:MAX_PROMPT_CHARS]
            problems = find_problems(layer, text, subject, options.max_tokens)
            if problems:
                failed.append(layer)
                texts[layer] = (
                    f"{ASK[layer]} An earlier answer was: {text[:400]!r}. What is wrong with it: "
                    f"{'; '.join(problems)}. Write it again without that."
                )
        left = failed
        if not left:
            break
    return left


def show(layers: Mapping[str, Any], layer: str, count: int, side: int) -> tuple[U8, ...]:
    """``count`` moments of a layer, at most ``side`` pixels long; the foreground on mid-grey.

    On black, captioners write of a black background.
    """
    frames = np.asarray(layers[layer])
    shown = []
    for place in evenly(len(frames), count):
        picture = frames[place]
        if layer == FOREGROUND:
            alpha = layers[ALPHA][place].astype(np.float32)[..., None] / 255
            picture = np.rint(alpha * picture + (1 - alpha) * 128).astype(np.uint8)
        scale = min(1.0, side / max(picture.shape[:2]))
        size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
        shown.append(np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA)))
    return tuple(shown)
