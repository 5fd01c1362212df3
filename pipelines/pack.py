"""Pack: layered stills -> image clips of one frame.

list groups of files -> read and straighten -> background (own, drawn, or filled) -> prompts ->
exact layers -> scores -> corpus. One unit of work is a range of groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from layerflow.clip import U8, resize_cover
from layerflow.corpus import clip_id, encode_row, file_sha256, origin, rejected_row
from layerflow.media import MediaError
from manifests.pack import PackOptions
from pipelines.jobs import Outcome, Recipe, Summary, Unit, make_recipe, run_job, unit_key
from pipelines.matting.numerics import single_thread
from pipelines.stages.draws import generator
from pipelines.stages.layouts import Group, group_files, words_of
from pipelines.stages.listing import STILL_SUFFIXES
from pipelines.stages.packing import (
    FILLED_PROMPT,
    Parts,
    made_up_background,
    make_clip,
    read_parts,
    still_prompts,
)
from pipelines.stages.paste_scores import score_layers
from pipelines.stages.prompts import Table, read_prompt_table
from pipelines.stages.stills import load_opaque

FORMAT_VERSION = 1
UNIT_STILLS = 32
LAYOUTS = ("auto", "stills")


@dataclass(frozen=True)
class Plan:
    """What all units share: groups of files in order, and backgrounds to draw from."""

    groups: tuple[Group, ...]
    pool: tuple[Group, ...]
    table: Table | None


def run_pack(options: PackOptions, *, workers: int | None = None, quiet: bool = False) -> Summary:
    """Pack the layered stills of ``options.inputs`` into the corpus ``options.out``.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. Raises ValueError for a
    request that cannot work (inputs, layout, output folder) before any work starts.
    """
    if options.layout not in LAYOUTS:
        raise ValueError(f"unknown layout {options.layout!r}; layouts are {', '.join(LAYOUTS)}")
    recipe = make_recipe("image", options.model_dump(mode="json"), FORMAT_VERSION)
    plan = make_plan(options)
    work = partial(pack_unit, plan=plan, options=options, recipe=recipe)
    units = plan_units(plan)
    return run_job(units, work, out=Path(options.out), recipe=recipe, workers=workers, quiet=quiet)


def make_plan(options: PackOptions) -> Plan:
    """List all inputs. A group that is only a background is one to draw from."""
    groups: list[Group] = []
    for item in options.inputs:
        root = Path(item)
        if not root.is_dir():
            raise ValueError(f"{item}: no such folder")
        groups += group_files(root.resolve(), STILL_SUFFIXES)
    pool = tuple(group for group in groups if set(group.roles) == {"background"})
    layered = tuple(group for group in groups if group not in set(pool))
    if not layered:
        raise ValueError(f"no still in {', '.join(options.inputs)}")
    table = read_prompt_table(Path(options.prompts)) if options.prompts else None
    return Plan(layered, pool, table)


def plan_units(plan: Plan, size: int = UNIT_STILLS) -> list[Unit]:
    """Ranges of groups, named after their files and sizes."""
    pool = [(group.uri, _bytes(group)) for group in plan.pool]
    units = []
    for start in range(0, len(plan.groups), size):
        chosen = plan.groups[start : start + size]
        key = unit_key(pool, start, [(group.uri, _bytes(group)) for group in chosen])
        payload = {"uri": chosen[0].uri, "start": start, "stop": start + len(chosen)}
        units.append(Unit(key, start, payload))
    return units


def _bytes(group: Group) -> list[int]:
    return [path.stat().st_size for _, path in group.files]


def pack_unit(
    payload: dict[str, Any], *, plan: Plan, options: PackOptions, recipe: Recipe
) -> Outcome:
    """The clips of a range of groups; what cannot be used is a rejected row with the reason."""
    outcome = Outcome()
    with single_thread():
        for group in plan.groups[payload["start"] : payload["stop"]]:
            try:
                outcome.rows.append(pack_one(group, plan, options, recipe))
            except (ValueError, OSError) as error:
                row = rejected_row(group.uri, "read", str(error), kind="image", recipe=recipe.hash)
                outcome.rejected.append(row)
    return outcome


def pack_one(group: Group, plan: Plan, options: PackOptions, recipe: Recipe) -> dict[str, Any]:
    """The corpus row of one group. Raises MediaError or ValueError."""
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
    layers = {name: clip.layer(name) for name in ("foreground", "alpha", "background", "blended")}
    return encode_row(
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
        scene = still_prompts(chosen, "", None)
        return frame, "real", scene["background"] or words_of(chosen.name) or "a scene", chosen
    rng = generator(options.seed, number, "fill")
    made = made_up_background(parts.rgba, options.fill, rng)
    return made, "filled", FILLED_PROMPT[options.fill], None


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
