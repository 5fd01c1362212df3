"""The corpus rows of one layered still or film: its layers, prompts, background and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import BACKGROUND, LAYERS, U8, LayeredClip, resize_cover
from layerflow.corpus.columns import SingleObject, encode_objects, visible_alphas
from layerflow.corpus.table import (
    clip_id,
    encode_row,
    file_sha256,
    origin,
)
from layerflow.media.cells import MediaError
from layerflow.media.decode import Decoder
from layerflow.seeds import generator
from manifests.pack import PackOptions
from pipelines.engine.jobs import Recipe
from pipelines.inputs.layouts import Film, Group, words_of
from pipelines.inputs.metadata import folder_prompts
from pipelines.inputs.prompts import Table, merged
from pipelines.inputs.tables import Part
from pipelines.pack.layers import (
    FILLED_PROMPT,
    Parts,
    clip_rights,
    made_up_background,
    make_clip,
    read_parts,
    still_prompts,
)
from pipelines.paste.scores import encode_checked, recomposition_error, score_layers
from pipelines.readers.animations import is_animation
from pipelines.readers.films import Reel, make_film_clip, windows
from pipelines.readers.stills import load_opaque


@dataclass(frozen=True)
class Plan:
    """What all units share: stills, films and tables in order, backgrounds to draw from, prompts by
    uri, column mappings of the tables; lacking: what a still or film misses, by uri."""

    groups: tuple[Group, ...]
    films: tuple[Film, ...]
    pool: tuple[Group, ...]
    table: Table
    parts: tuple[Part, ...] = ()
    mappings: tuple[Mapping[str, str], ...] = ()
    lacking: Mapping[str, str] = field(default_factory=dict)


def pack_film(film: Film, plan: Plan, options: PackOptions, recipe: Recipe) -> list[dict[str, Any]]:
    """The corpus rows of one film, window by window. Raises MediaError or ValueError."""
    if film.uri in plan.lacking:
        raise MediaError(plan.lacking[film.uri])
    if all(_is_still_gif(paths) for _, paths in film.layers):
        single = tuple((role, paths[0]) for role, paths in film.layers)
        return pack_still(Group(film.uri, film.key, single), plan, options, recipe)
    with Decoder(deadline=options.deadline) as decoder:
        return _film_rows(film, Reel(film.roles, decoder), plan, options, recipe)


def _is_still_gif(paths: Sequence[Path]) -> bool:
    single = len(paths) == 1 and paths[0].suffix.lower() == ".gif"
    return single and not is_animation(paths[0])


def _film_rows(
    film: Film, reel: Reel, plan: Plan, options: PackOptions, recipe: Recipe
) -> list[dict[str, Any]]:
    group = Group(film.uri, film.key, tuple((role, paths[0]) for role, paths in film.layers))
    smaller = options.size is not None and all(map(int.__le__, options.size, reel.size))
    work = options.size if smaller else None
    first = Parts(reel.cutout([0], work)[0], None, None)
    made_up, _, scene, drawn = _draw_background(group, first, plan, options)
    known = folder_prompts(film.layers[0][1][0].parent)
    table: dict[str, Mapping[str, str]] = {film.uri: merged(plan.table.get(film.uri, {}), known)}
    if drawn is not None:
        table[drawn.uri] = plan.table.get(drawn.uri, {})
    own = reel.shows_scene
    prompts = still_prompts(group, "a scene" if own else scene, table)
    default = {"licence": options.licence, "attribution": options.attribution}
    held = clip_rights([film, *([drawn] if drawn and not own else [])], table, default)
    sha256 = _joined([file_sha256(path) for _, paths in film.layers for path in paths])
    rows = []
    rate = reel.fps or options.fps
    for chosen in windows(reel.count, reel.fps, options.frames, options.fps):
        clip = make_film_clip(
            reel.read(chosen, work),
            fps=options.fps,
            made_up=made_up,
            prompts=prompts,
            size=options.size,
        )
        scores = score_layers({name: clip.layer(name) for name in LAYERS})
        if clip.kind == "mined":
            scores["recomposition_error"] = recomposition_error(clip)
            del scores["equation_error"]
        span = (chosen[0] / rate, (chosen[-1] + 1) / rate)
        rows.append(
            encode_checked(
                clip,
                id=clip_id(clip.kind, [sha256, film.uri], span, recipe.hash),
                origin=origin(
                    film.uri,
                    sha256,
                    start=span[0],
                    end=span[1],
                    parents=[film.uri, *([drawn.uri] if drawn is not None and not own else [])],
                    licence=held["licence"],
                    attribution=held["attribution"],
                ),
                quality=scores,
                recipe=recipe.hash,
                crf=options.crf,
                min_psnr=options.min_psnr,
            )
        )
    return rows


def pack_still(
    group: Group, plan: Plan, options: PackOptions, recipe: Recipe
) -> list[dict[str, Any]]:
    """The corpus row of one group of stills; of animated pictures one a window, as of a film.

    Raises MediaError or ValueError.
    """
    if group.uri in plan.lacking:
        raise MediaError(plan.lacking[group.uri])
    if is_animation(group.files[0][1]):
        moving = tuple((role, (path,)) for role, path in group.files)
        return pack_film(Film(group.uri, group.key, moving), plan, options, recipe)
    parts = read_parts(group.roles)
    files = [path for _, path in group.files]
    parents = [group.uri]
    behind, background, scene = parts.behind, parts.background, "a scene"
    drawn: Group | None = None
    if behind is None:
        background, behind, scene, drawn = _draw_background(group, parts, plan, options)
        if drawn is not None:
            files.append(drawn.files[0][1])
            parents.append(drawn.uri)
    assert background is not None and behind is not None
    prompts = still_prompts(group, scene, plan.table, parts.prompts)
    clip = make_clip(parts, background, behind, prompts, options.size)
    digests = [file_sha256(path) for path in files]
    sha256 = digests[0] if len(digests) == 1 else _joined(digests)
    layers = {name: clip.layer(name) for name in LAYERS}
    default = {"licence": options.licence, "attribution": options.attribution}
    held = clip_rights([group, *([drawn] if drawn is not None else [])], plan.table, default)
    source = origin(
        group.uri,
        sha256,
        parents=parents,
        licence=held["licence"],
        attribution=held["attribution"],
    )
    row = encode_row(
        clip,
        id=clip_id("image", [*digests, group.uri], [0], recipe.hash),
        origin=source,
        quality=score_layers(layers),
        recipe=recipe.hash,
    )
    if len(parts.objects) > 1:
        row["objects"] = encode_objects(_singles(parts, clip, source), clip.fps, still=True)
    return [row]


def _singles(parts: Parts, clip: LayeredClip, source: dict[str, Any]) -> list[SingleObject]:
    """The single objects of a still at the clip's size."""
    amodal = [
        np.ascontiguousarray(resize_cover(rgba[None, ..., 3], *clip.size))
        for _, rgba in parts.objects
    ]
    seen = visible_alphas(amodal)
    return [
        SingleObject(order, caption, visible, whole, source)
        for order, ((caption, _), visible, whole) in enumerate(
            zip(parts.objects, seen, amodal, strict=True)
        )
    ]


def _draw_background(
    group: Group, parts: Parts, plan: Plan, options: PackOptions
) -> tuple[U8, str, str, Group | None]:
    """Frame, kind, prompt and source of a background for a still without one.

    The draw is a function of (seed, the still's uri). A drawn background that cannot be read is
    skipped for the next draw.
    """
    number = int.from_bytes(hashlib.sha256(group.uri.encode()).digest()[:6], "big")
    height, width = parts.rgba.shape[:2]
    for attempt in range(4 if plan.pool else 0):
        rng = generator(options.seed, number, "background", attempt)
        chosen = plan.pool[int(rng.integers(len(plan.pool)))]
        try:
            picture = load_opaque(chosen.files[0][1])
        except MediaError:
            continue
        frame = resize_cover(picture[None], height, width)[0]
        scene = still_prompts(chosen, "", {})
        return frame, "real", scene[BACKGROUND] or words_of(chosen.name) or "a scene", chosen
    rng = generator(options.seed, number, "fill")
    made = made_up_background(parts.rgba, options.fill, rng)
    return made, "filled", FILLED_PROMPT[options.fill], None


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
