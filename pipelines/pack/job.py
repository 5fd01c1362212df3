"""Pack: layered stills -> image clips of one frame, layered films -> moving clips.

list what belongs together -> read and straighten -> background (own, drawn, or filled) -> prompts
-> exact layers -> scores -> corpus. One unit of work is a range of stills, or one film.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from layerflow.clip import LAYERS
from layerflow.corpus.table import (
    EXTENDED_SCHEMA,
    rejected_row,
)
from layerflow.locations import root_of, without_secrets
from layerflow.outputs import local_output
from layerflow.plugins import packages_of
from manifests.pack import PackOptions
from pipelines.engine.jobs import (
    Choose,
    Outcome,
    Recipe,
    Summary,
    Unit,
    make_recipe,
    run_job,
    unit_key,
)
from pipelines.inputs.importers import LAYOUTS, Listing, importer_of
from pipelines.inputs.layouts import Film, Group
from pipelines.inputs.listing import tell
from pipelines.inputs.metadata import folders_say
from pipelines.inputs.prompts import (
    check_matches,
    clean_text,
    entry_for,
    merged,
    read_prompt_table,
    said_in,
)
from pipelines.inputs.tables import (
    TEXTS,
    list_parts,
    mapping_of,
    picture_bytes,
    read_cells,
)
from pipelines.pack.rows import Plan, pack_film, pack_still
from pipelines.vision.numerics import single_thread

FORMAT_VERSION = 3
UNIT_STILLS = 32


def run_pack(
    options: PackOptions,
    *,
    workers: int | None = None,
    quiet: bool = False,
    only: Choose | None = None,
    accept_lost: bool = False,
) -> Summary:
    """Pack the layered stills and films of ``options.inputs`` into the corpus ``options.out``.

    workers: Ray tasks at a time, None for all CPUs, 0 for this process. only: whether a unit is
    wanted, all by default. accept_lost: see ``run_job``. Raises ValueError for a request that
    cannot work (inputs, layout, output folder) before any work starts.
    """
    out = local_output(options.out)
    named = None if options.layout == "auto" else options.layout
    packages = packages_of(layout=(LAYOUTS, named))
    if options.layout == "psd" and importlib.util.find_spec("psd_tools") is None:
        raise ValueError("--layout psd needs psd-tools: pip install 'layerflow-toolkit[psd]'")
    content = options.model_dump(mode="json")
    recipe = make_recipe("image", content, FORMAT_VERSION, packages)
    plan = make_plan(options)
    work = partial(pack_unit, plan=plan, options=options, recipe=recipe)
    return run_job(
        plan_units(plan),
        work,
        out=out,
        recipe=recipe,
        workers=workers,
        quiet=quiet,
        only=only,
        accept_lost=accept_lost,
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
    everything: list[Group | Film] = [*found.stills, *found.films]
    names = {entry.uri: entry.name for entry in everything}
    given = read_prompt_table(Path(options.prompts)) if options.prompts else {}
    if options.prompts and not names:
        raise ValueError(f"{options.prompts}: rows of a table say this in columns of their own")
    if options.prompts:
        unnamed = check_matches(given, names, options.prompts)
        if unnamed:
            tell(unnamed)
    table = {
        uri: merged(entry_for(uri, given, name), entry_for(uri, found.prompts, name))
        for uri, name in names.items()
    }
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
                location = Path(part.location)
                root = None if part.remote else root_of(location, part.uri)
                known = merged(known, said_in(rest), *folders_say([location], root))
                group = Group(uri, "", tuple(sorted(files)))
                shown = replace(plan, table={uri: known}) if known else plan
                return pack_still(group, shown, options, recipe)

            attempt(uri, make)
