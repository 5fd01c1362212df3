"""The last steps of a packed clip: exact layers, scores, its corpus row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerflow.clip import LAYERS, U8, LayeredClip, composite, resize_cover
from layerflow.corpus.columns import SingleObject, encode_objects, visible_alphas
from layerflow.corpus.table import clip_id
from pipelines.pack.still import Still
from pipelines.paste.scores import encode_checked, recomposition_error, score_layers
from pipelines.readers.stills import alpha_kind
from pipelines.readers.videos import make_video_clip, resized
from pipelines.vision.composite import continued


def make_layers(still: Still) -> None:
    """Make the clip: layers that give ``blended`` exactly, or a real video with its own."""
    if still.video is None:
        still.clip = _still_clip(still)
        return
    still.clip = make_video_clip(
        still.video.read(still.chosen, still.read_size),
        fps=still.options.fps,
        made_up=still.background,
        prompts=still.prompts,
        size=still.options.size,
    )


def _still_clip(still: Still) -> LayeredClip:
    """An ``image`` clip, at the size that is asked for."""
    assert still.layers is not None and still.background is not None and still.behind is not None
    alpha = np.ascontiguousarray(still.layers.rgba[..., 3])
    foreground = continued(still.layers.rgba[..., :3], alpha)
    clip = LayeredClip(
        foreground=foreground[None],
        alpha=alpha[None],
        background=still.background[None],
        blended=composite(foreground, alpha, still.background)[None],
        prompts=still.prompts,
        kind="image",
        alpha_kind=alpha_kind(alpha),
        background_kind=still.behind,
    )
    return resized(clip, still.options.size)


def score(still: Still) -> None:
    """Score the layers before encoding."""
    still.scores = score_layers({name: still.clip.layer(name) for name in LAYERS})
    if still.clip.kind == "mined":
        still.scores["recomposition_error"] = recomposition_error(still.clip)
        del still.scores["equation_error"]


def encode(still: Still) -> None:
    """Encode the corpus row; single objects of a still beside it."""
    span: Sequence[float] = still.chosen
    source = still.source
    if still.video is not None:
        rate = still.video.fps or still.options.fps
        span = (still.chosen[0] / rate, (still.chosen[-1] + 1) / rate)
        source = source | {"start": span[0], "end": span[1]}
    clip, recipe = still.clip, still.context.recipe
    still.row = encode_checked(
        clip,
        id=clip_id(clip.kind, [*still.digests, still.entry.uri], span, recipe),
        origin=source,
        quality=still.scores,
        recipe=recipe,
        crf=still.options.crf,
        min_psnr=still.options.min_psnr,
    )
    if still.layers is not None and len(still.layers.objects) > 1:
        singles = _singles(still.layers.objects, still)
        still.row["objects"] = encode_objects(singles, clip.fps, still=True)


def _singles(objects: Sequence[tuple[str, U8]], still: Still) -> list[SingleObject]:
    """The single objects of a still at the clip's size."""
    amodal = [
        np.ascontiguousarray(resize_cover(rgba[None, ..., 3], *still.clip.size))
        for _, rgba in objects
    ]
    found = zip(objects, visible_alphas(amodal), amodal, strict=True)
    return [
        SingleObject(order, caption, visible, whole, still.source)
        for order, ((caption, _), visible, whole) in enumerate(found)
    ]
