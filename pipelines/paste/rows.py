"""The last step of a pasted clip: its corpus row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, LayeredClip
from layerflow.corpus.columns import SingleObject, encode_objects
from layerflow.corpus.table import clip_id, encode_row, origin
from layerflow.locations import clean_uri
from layerflow.media.cells import encode_color
from manifests.paste import PasteOptions
from pipelines.paste.repeats import signature
from pipelines.paste.sample import PlacedObject, Sample
from pipelines.paste.scores import encode_checked, encode_color_checked
from pipelines.publish.licences import all_of


def encode(sample: Sample) -> None:
    """Encode the layers: prompts, origin with all parents, scores after encoding where asked."""
    clip, parts = described(sample)
    parts["crf"] = sample.options.crf
    if _checks(sample):
        row = encode_checked(clip, min_psnr=sample.options.min_psnr, **parts)
    else:
        row = encode_row(clip, **parts)
    sample.row = row | _extra_cells(sample)


def described(sample: Sample) -> tuple[LayeredClip, dict[str, Any]]:
    """The clip of a sample before it is coded, and its id, origin, quality and recipe."""
    options, background = sample.options, sample.background
    main, front_to_back = sample.objects[-1], sample.objects[::-1]
    subject = ", ".join(dict.fromkeys(item.prompt for item in front_to_back))
    clip = LayeredClip(
        **sample.layers,
        prompts={
            FOREGROUND: subject,
            BACKGROUND: background.prompt,
            BLENDED: f"{subject}, {background.prompt}",
        },
        fps=options.fps,
        kind="pasted",
        alpha_kind=main.alpha_kind if len(sample.objects) == 1 else "soft",
        background_kind=background.kind,
    )
    records = [*(item.record for item in front_to_back), background.record]
    keys = [record.get("key") or record["sha256"] for record in records]
    parts: dict[str, Any] = {
        "id": clip_id("pasted", keys, [sample.index], sample.context.recipe),
        "origin": _origin(records[0], options)
        | {
            "licence": all_of([r["licence"] or options.licence for r in records]),
            "attribution": all_of(
                [r["attribution"] or options.attribution for r in records], "attribution"
            ),
            "parents": [clean_uri(record["uri"]) for record in records],
        },
        "quality": sample.scores,
        "recipe": sample.context.recipe,
    }
    return clip, parts


def _checks(sample: Sample) -> bool:
    """Whether the clip is decoded again after encoding."""
    every = sample.options.encoded_check
    return bool(every and sample.index % every == 0)


def _extra_cells(sample: Sample) -> dict[str, Any]:
    """The columns beyond those of every corpus: see ``layerflow.corpus.columns``."""
    options, plate = sample.options, sample.plate
    least = options.min_psnr if _checks(sample) else 0.0
    color = partial(encode_color_checked, crf=options.crf, min_psnr=least)
    return {
        "shadow": shadow_owner(sample),
        "plate": None if plate is None else encode_color(plate, options.fps, crf=options.crf),
        "objects": encode_objects(single_objects(sample), options.fps, color=color) or None,
        "draw": json.dumps(_short(_notes(sample)), separators=(",", ":")),
    }


def single_objects(sample: Sample) -> list[SingleObject]:
    """The objects of a sample with several, back to front."""
    found = zip(sample.objects, sample.visible, sample.amodal, sample.colours, strict=False)
    return [
        SingleObject(
            order, item.prompt, visible, amodal, _origin(item.record, sample.options), colour
        )
        for order, (item, visible, amodal, colour) in enumerate(found)
    ]


def shadow_owner(sample: Sample) -> str:
    """The column ``shadow`` of a sample."""
    return "none" if sample.plate is None else "background"


def _origin(record: Mapping[str, Any], options: PasteOptions) -> dict[str, Any]:
    return origin(
        record["uri"].split("#")[0],
        record["sha256"],
        start=record["start"],
        end=record["end"],
        licence=record["licence"] or options.licence,
        attribution=record["attribution"] or options.attribution,
    )


def _notes(sample: Sample) -> dict[str, Any]:
    """What was drawn and measured: enough to say why a clip looks as it does."""
    return {
        "index": sample.index,
        "attempt": sample.attempt,
        "background_mirrored": sample.mirrored,
        "objects": [_notes_of(placed) for placed in sample.placed],
        "shadow": None if sample.shadow is None else asdict(sample.shadow),
        "signature": signature(sample.layers[ALPHA], sample.layers[BLENDED]),
    }


def _notes_of(placed: PlacedObject) -> dict[str, Any]:
    item, path, change = placed.item, placed.path, placed.change
    curve = {k: v.tolist() for k, v in vars(change.curve).items()} if change.curve else None
    return {
        "uri": item.record["uri"],
        "placement": path.mode,
        "mirrored": path.mirrored,
        "frames": [item.numbers[k] for k in placed.picked] if item.numbers else placed.picked,
        "poses": path.poses.tolist(),
        "harmonise": change.strength,
        "curve": curve,
        "blur": change.sigma,
        "grain": change.grain,
    }


def _short(value: Any) -> Any:
    """Plain values with numbers of five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: _short(item) for name, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value
