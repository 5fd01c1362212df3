"""Pack: layered stills -> image clips of one frame, layered films -> moving clips.

list what belongs together -> read and straighten -> background (own, drawn, or filled) -> prompts
-> exact layers -> scores -> corpus. One unit of work is a range of stills, or one film.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import LAYERS, U8, LayeredClip, resize_cover
from layerflow.corpus import (
    EXTENDED_SCHEMA,
    clip_id,
    encode_row,
    file_sha256,
    origin,
    rejected_row,
)
from layerflow.decode import Decoder
from layerflow.extras import SingleObject, encode_objects, visible_alphas
from layerflow.locations import without_secrets
from layerflow.media import MediaError
from manifests.pack import PackOptions
from pipelines.jobs import Choose, Outcome, Recipe, Summary, Unit, make_recipe, run_job, unit_key
from pipelines.licences import joined
from pipelines.matting.numerics import single_thread
from pipelines.stages.draws import generator
from pipelines.stages.films import make_film_clip, read_film, windows
from pipelines.stages.importers import LAYOUTS, Listing, importer_of
from pipelines.stages.layouts import Film, Group, words_of
from pipelines.stages.listing import tell
from pipelines.stages.metadata import folder_prompts
from pipelines.stages.packing import (
    FILLED_PROMPT,
    Parts,
    clip_rights,
    made_up_background,
    make_clip,
    read_parts,
    still_prompts,
)
from pipelines.stages.paste_scores import encode_checked, recomposition_error, score_layers
from pipelines.stages.prompts import (
    Table,
    check_matches,
    clean_text,
    read_prompt_table,
    said_in,
)
from pipelines.stages.stills import load_opaque
from pipelines.stages.tables import (
    TEXTS,
    Part,
    list_parts,
    mapping_of,
    picture_bytes,
    read_cells,
)

FORMAT_VERSION = 2
UNIT_STILLS = 32


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


def run_pack(
    options: PackOptions,
    *,
    workers: int | None = None,
    quiet: bool = False,
    only: Choose | None = None,
) -> Summary:
    """Pack the layered stills and films of ``options.inputs`` into the corpus ``options.out``.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. only: whether a unit is
    wanted, all by default. Raises ValueError for a request that cannot work (inputs, layout, output
    folder) before any work starts.
    """
    if options.layout not in LAYOUTS:
        raise ValueError(f"unknown layout {options.layout!r}; layouts are {', '.join(LAYOUTS)}")
    if options.layout == "psd" and importlib.util.find_spec("psd_tools") is None:
        raise ValueError("--layout psd needs psd-tools: pip install 'layerflow-toolkit[psd]'")
    recipe = make_recipe("image", options.model_dump(mode="json"), FORMAT_VERSION)
    plan = make_plan(options)
    work = partial(pack_unit, plan=plan, options=options, recipe=recipe)
    return run_job(
        plan_units(plan),
        work,
        out=Path(options.out),
        recipe=recipe,
        workers=workers,
        quiet=quiet,
        only=only,
        schema=EXTENDED_SCHEMA,
    )


def make_plan(options: PackOptions) -> Plan:
    """List all inputs. A group that is only a background is one to draw from."""
    found = Listing()
    lacking: dict[str, str] = {}
    for item in options.inputs:
        if "://" in item:
            found.parts += list_parts(item)
            continue
        root = Path(item).resolve()
        if not root.is_dir():
            raise ValueError(f"{item}: no such folder")
        importer = importer_of(options.layout, root)
        listed = importer.list(root)
        found.stills += listed.stills
        found.films += listed.films
        found.parts += listed.parts
        found.prompts |= listed.prompts
        entries: list[Group | Film] = [*listed.stills, *listed.films]
        for entry in entries:
            reason = importer.lacks(entry.roles)
            if reason is not None:
                lacking[entry.uri] = reason
    pool = tuple(group for group in found.stills if set(group.roles) == {"background"})
    layered = tuple(group for group in found.stills if set(group.roles) != {"background"})
    if not layered and not found.films and not found.parts:
        raise ValueError(
            without_secrets(f"no layered still or film in {', '.join(options.inputs)}")
        )
    table = {**found.prompts}
    if options.prompts:
        given = read_prompt_table(Path(options.prompts))
        uris = [*(group.uri for group in found.stills), *(film.uri for film in found.films)]
        unnamed = check_matches(given, uris, options.prompts) if uris else None
        if unnamed:
            tell(unnamed)
        for key, said in given.items():  # rights of the folder's own index hold too
            both = joined([table.get(key, {}).get("licence"), said.get("licence")])
            table[key] = {**table.get(key, {}), **said} | ({"licence": both} if both else {})
    mappings = tuple(mapping_of(part.columns, options.columns) for part in found.parts)
    films, parts = tuple(found.films), tuple(found.parts)
    return Plan(layered, films, pool, table, parts, mappings, lacking)


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
    order = len(plan.groups) + len(plan.films)
    for place, part in enumerate(plan.parts):
        mapping = sorted(plan.mappings[place].items())
        for start in range(0, part.rows, size):
            stop = min(part.rows, start + size)
            payload = {"uri": part.uri, "table": place, "start": start, "stop": stop}
            key = unit_key(pool, place, part.uri, part.rows, mapping, start)
            units.append(Unit(key, order, payload))
            order += 1
    return units


def _bytes(group: Group) -> list[int]:
    return [path.stat().st_size if path.is_file() else -1 for _, path in group.files]


def pack_unit(
    payload: dict[str, Any], *, plan: Plan, options: PackOptions, recipe: Recipe
) -> Outcome:
    """The clips of a range of stills or table rows, or of one film; what cannot be used is a
    rejected row."""
    rows: list[dict[str, Any]] = []
    outcome = Outcome(rows)

    def attempt(uri: str, make: Callable[[], list[dict[str, Any]]]) -> None:
        try:
            rows.extend(make())
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            row = rejected_row(uri, "read", reason or str(error), kind="image", recipe=recipe.hash)
            outcome.rejected.append(row)

    with single_thread():
        if "film" in payload:
            film = plan.films[payload["film"]]
            attempt(film.uri, partial(pack_film, film, plan, options, recipe))
            return outcome
        if "table" in payload:
            pack_table(payload, plan, options, recipe, attempt)
            return outcome
        for group in plan.groups[payload["start"] : payload["stop"]]:
            attempt(group.uri, partial(pack_still, group, plan, options, recipe))
    return outcome


def pack_table(
    payload: dict[str, Any],
    plan: Plan,
    options: PackOptions,
    recipe: Recipe,
    attempt: Callable[[str, Callable[[], list[dict[str, Any]]]], None],
) -> None:
    """The rows of a range of a table, each through files of its own for as long as it takes."""
    part, mapping = plan.parts[payload["table"]], plan.mappings[payload["table"]]
    for number, cells in read_cells(part, mapping, payload["start"], payload["stop"]):
        uri = f"{part.uri}#{number}"
        with tempfile.TemporaryDirectory(prefix="layerflow-") as folder:

            def make(
                cells: dict[str, Any] = cells, uri: str = uri, folder: str = folder
            ) -> list[dict[str, Any]]:
                files = []
                for role in LAYERS:
                    if cells.get(role) is not None:
                        path = Path(folder) / f"{role}.png"
                        path.write_bytes(picture_bytes(cells[role], part))
                        files.append((role, path))
                texts = {k.removesuffix("_prompt"): v for k, v in cells.items() if k in TEXTS}
                known = {k: clean_text(v) for k, v in texts.items() if isinstance(v, str)}
                rest = {k: v for k, v in cells.items() if k not in (*LAYERS, *TEXTS)}
                known |= said_in(rest)
                group = Group(uri, "", tuple(sorted(files)))
                shown = replace(plan, table={uri: known}) if known else plan
                return pack_still(group, shown, options, recipe)

            attempt(uri, make)


def pack_film(film: Film, plan: Plan, options: PackOptions, recipe: Recipe) -> list[dict[str, Any]]:
    """The corpus rows of one film, window by window. Raises MediaError or ValueError."""
    if film.uri in plan.lacking:
        raise MediaError(plan.lacking[film.uri])
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
    default = {"licence": options.licence, "attribution": options.attribution}
    held = clip_rights([film, *([drawn] if drawn and not own else [])], table, default)
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
    """The corpus row of one group of stills. Raises MediaError or ValueError."""
    if group.uri in plan.lacking:
        raise MediaError(plan.lacking[group.uri])
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
        return frame, "real", scene["background"] or words_of(chosen.name) or "a scene", chosen
    rng = generator(options.seed, number, "fill")
    made = made_up_background(parts.rgba, options.fill, rng)
    return made, "filled", FILLED_PROMPT[options.fill], None


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
