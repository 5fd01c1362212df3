"""Pack: layered stills -> image clips of one frame, layered films -> moving clips.

list what belongs together -> read and straighten -> background (own, drawn, or filled) -> prompts
-> exact layers -> scores -> corpus. One unit of work is a range of stills, or one film.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import LAYERS, U8, resize_cover
from layerflow.corpus import clip_id, encode_row, file_sha256, origin, rejected_row
from layerflow.decode import Decoder
from layerflow.media import MediaError
from manifests.pack import PackOptions
from pipelines.jobs import Outcome, Recipe, Summary, Unit, make_recipe, run_job, unit_key
from pipelines.matting.numerics import single_thread
from pipelines.stages.draws import generator
from pipelines.stages.films import make_film_clip, read_film, windows
from pipelines.stages.layouts import Film, Group, group_files, split_films, words_of
from pipelines.stages.listing import STILL_SUFFIXES, VIDEO_SUFFIXES
from pipelines.stages.metadata import film_prompts, folder_prompts, layered_images
from pipelines.stages.packing import (
    FILLED_PROMPT,
    Parts,
    made_up_background,
    make_clip,
    read_parts,
    still_prompts,
)
from pipelines.stages.paste_scores import recomposition_error, score_layers
from pipelines.stages.photoshop import SUFFIXES as DOCUMENT_SUFFIXES
from pipelines.stages.prompts import Table, read_prompt_table
from pipelines.stages.stills import load_opaque

FORMAT_VERSION = 1
UNIT_STILLS = 32
LAYOUTS = ("auto", "stills", "films", "layerflow-images", "psd")
SUFFIXES = {
    "auto": STILL_SUFFIXES | VIDEO_SUFFIXES | DOCUMENT_SUFFIXES,
    "psd": DOCUMENT_SUFFIXES,
    "stills": STILL_SUFFIXES,
    "films": STILL_SUFFIXES | VIDEO_SUFFIXES,
    "layerflow-images": STILL_SUFFIXES,
}


@dataclass(frozen=True)
class Plan:
    """What all units share: stills and films in order, backgrounds to draw from, prompts by uri."""

    groups: tuple[Group, ...]
    films: tuple[Film, ...]
    pool: tuple[Group, ...]
    table: Table


def run_pack(options: PackOptions, *, workers: int | None = None, quiet: bool = False) -> Summary:
    """Pack the layered stills and films of ``options.inputs`` into the corpus ``options.out``.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. Raises ValueError for a
    request that cannot work (inputs, layout, output folder) before any work starts.
    """
    if options.layout not in LAYOUTS:
        raise ValueError(f"unknown layout {options.layout!r}; layouts are {', '.join(LAYOUTS)}")
    if options.layout == "psd" and importlib.util.find_spec("psd_tools") is None:
        raise ValueError("--layout psd needs psd-tools: pip install 'layerflow-toolkit[psd]'")
    recipe = make_recipe("image", options.model_dump(mode="json"), FORMAT_VERSION)
    plan = make_plan(options)
    work = partial(pack_unit, plan=plan, options=options, recipe=recipe)
    units = plan_units(plan)
    return run_job(units, work, out=Path(options.out), recipe=recipe, workers=workers, quiet=quiet)


def make_plan(options: PackOptions) -> Plan:
    """List all inputs. A group that is only a background is one to draw from."""
    stills: list[Group] = []
    films: list[Film] = []
    table: dict[str, Mapping[str, str]] = {}
    for item in options.inputs:
        root = Path(item).resolve()
        if not root.is_dir():
            raise ValueError(f"{item}: no such folder")
        listed = layered_images(root) if options.layout in ("auto", "layerflow-images") else None
        if listed is not None:
            stills += listed[0]
            table |= listed[1]
            continue
        found, rest = split_films(group_files(root, SUFFIXES[options.layout]))
        if options.layout == "stills":
            found, rest = [], group_files(root, SUFFIXES[options.layout])
        films += found
        stills += rest if options.layout != "films" else []
        table |= film_prompts(root)
    pool = tuple(group for group in stills if set(group.roles) == {"background"})
    layered = tuple(group for group in stills if set(group.roles) != {"background"})
    if not layered and not films:
        raise ValueError(f"no layered still or film in {', '.join(options.inputs)}")
    if options.prompts:
        table |= read_prompt_table(Path(options.prompts))
    return Plan(layered, tuple(films), pool, table)


def plan_units(plan: Plan, size: int = UNIT_STILLS) -> list[Unit]:
    """Ranges of stills, and single films, named after their files and sizes."""
    pool = [(group.uri, _bytes(group)) for group in plan.pool]
    units = []
    for start in range(0, len(plan.groups), size):
        chosen = plan.groups[start : start + size]
        key = unit_key(pool, start, [(group.uri, _bytes(group)) for group in chosen])
        payload = {"uri": chosen[0].uri, "start": start, "stop": start + len(chosen)}
        units.append(Unit(key, start, payload))
    for place, film in enumerate(plan.films):
        sizes = [path.stat().st_size for _, paths in film.layers for path in paths]
        key = unit_key(pool, place, film.uri, sizes)
        units.append(Unit(key, len(plan.groups) + place, {"uri": film.uri, "film": place}))
    return units


def _bytes(group: Group) -> list[int]:
    return [path.stat().st_size if path.is_file() else -1 for _, path in group.files]


def pack_unit(
    payload: dict[str, Any], *, plan: Plan, options: PackOptions, recipe: Recipe
) -> Outcome:
    """The clips of a range of stills, or of one film; what cannot be used is a rejected row."""
    outcome = Outcome()

    def attempt(uri: str, make: Callable[[], list[dict[str, Any]]]) -> None:
        try:
            outcome.rows.extend(make())
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            row = rejected_row(uri, "read", reason or str(error), kind="image", recipe=recipe.hash)
            outcome.rejected.append(row)

    with single_thread():
        if "film" in payload:
            film = plan.films[payload["film"]]
            attempt(film.uri, partial(pack_film, film, plan, options, recipe))
            return outcome
        for group in plan.groups[payload["start"] : payload["stop"]]:
            attempt(group.uri, partial(pack_still, group, plan, options, recipe))
    return outcome


def pack_film(film: Film, plan: Plan, options: PackOptions, recipe: Recipe) -> list[dict[str, Any]]:
    """The corpus rows of one film, window by window. Raises MediaError or ValueError."""
    with Decoder(deadline=options.deadline) as decoder:
        layers = read_film(film.roles, decoder)
    first = (
        np.dstack([layers.alpha[0]] * 4)
        if layers.foreground is None
        else np.dstack([layers.foreground[0], layers.alpha[0]])
    )
    group = Group(film.uri, film.key, tuple((role, paths[0]) for role, paths in film.layers))
    made_up, _, scene, drawn = _draw_background(group, Parts(first, None, None), plan, options)
    known = folder_prompts(film.layers[0][1][0].parent)
    table = {film.uri: known, **{k: v for k, v in plan.table.items() if v}} if known else plan.table
    own = layers.background is not None or layers.blended is not None
    prompts = still_prompts(group, "a scene" if own else scene, table)
    sha256 = _joined([file_sha256(path) for _, paths in film.layers for path in paths])
    rows = []
    rate = layers.fps or options.fps
    for chosen in windows(len(layers.alpha), layers.fps, options.frames, options.fps):
        clip = make_film_clip(
            layers, chosen, fps=options.fps, made_up=made_up, prompts=prompts, size=options.size
        )
        scores = score_layers({name: clip.layer(name) for name in LAYERS})
        if clip.kind == "mined":
            scores["recomposition_error"] = recomposition_error(clip)
            del scores["equation_error"]
        span = (chosen[0] / rate, (chosen[-1] + 1) / rate)
        rows.append(
            encode_row(
                clip,
                id=clip_id(clip.kind, [sha256, film.uri], span, recipe.hash),
                origin=origin(
                    film.uri,
                    sha256,
                    start=span[0],
                    end=span[1],
                    licence=options.licence,
                    attribution=options.attribution,
                    parents=[film.uri, *([drawn.uri] if drawn is not None and not own else [])],
                ),
                quality=scores,
                recipe=recipe.hash,
                crf=options.crf,
            )
        )
    return rows


def pack_still(
    group: Group, plan: Plan, options: PackOptions, recipe: Recipe
) -> list[dict[str, Any]]:
    """The corpus row of one group of stills. Raises MediaError or ValueError."""
    parts = read_parts(group.roles)
    files = [path for _, path in group.files]
    parents = [group.uri]
    behind, background, scene = parts.behind, parts.background, "a scene"
    if behind is None:
        background, behind, scene, drawn = _draw_background(group, parts, plan, options)
        if drawn is not None:
            files.append(drawn.files[0][1])
            parents.append(drawn.uri)
    assert background is not None and behind is not None
    prompts = still_prompts(group, scene, plan.table)
    clip = make_clip(parts, background, behind, prompts, options.size)
    digests = [file_sha256(path) for path in files]
    sha256 = digests[0] if len(digests) == 1 else _joined(digests)
    layers = {name: clip.layer(name) for name in LAYERS}
    row = encode_row(
        clip,
        id=clip_id("image", [*digests, group.uri], [0], recipe.hash),
        origin=origin(
            group.uri,
            sha256,
            licence=options.licence,
            attribution=options.attribution,
            parents=parents,
        ),
        quality=score_layers(layers),
        recipe=recipe.hash,
    )
    return [row]


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
        return frame, "real", scene["background"] or words_of(chosen.name) or "a scene", chosen
    rng = generator(options.seed, number, "fill")
    made = made_up_background(parts.rgba, options.fill, rng)
    return made, "filled", FILLED_PROMPT[options.fill], None


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
