"""What a pack job packs, and its units of work: ranges of stills or table rows, single videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerflow.clip import BACKGROUND
from layerflow.locations import without_secrets
from manifests.pack import PackOptions
from pipelines.engine.jobs import Unit, unit_key
from pipelines.inputs.exported import ExportPart
from pipelines.inputs.importers import Listing, list_folder, load_importer
from pipelines.inputs.layouts import Group
from pipelines.inputs.listing import tell
from pipelines.inputs.prompts import Table, check_matches, entry_for, merged, read_prompt_table
from pipelines.inputs.tables import TablePart, list_parts, mapping_of

UNIT_STILLS = 32


@dataclass(frozen=True)
class PackPlan:
    """What all units share: stills, videos, tables and pieces of exports in order, backgrounds to
    draw from, prompts and rights by uri, column mappings of the tables."""

    stills: tuple[Group, ...]
    videos: tuple[Group, ...]
    pool: tuple[Group, ...]
    said: Table
    tables: tuple[TablePart, ...] = ()
    mappings: tuple[Mapping[str, str], ...] = ()
    exported: tuple[ExportPart, ...] = ()


def make_plan(options: PackOptions) -> PackPlan:
    """List all inputs. A still that is only a background is one to draw from.

    Raises ValueError for an unknown layout, and where an input does not exist or nothing is found.
    """
    load_importer(options.layout)
    found = Listing()
    for item in options.inputs:
        if "://" in item:
            found.tables += list_parts(item)
            continue
        root = Path(item).resolve()
        if not root.is_dir():
            raise ValueError(f"{item}: no such folder")
        found += list_folder(options.layout, root)
    pool = tuple(still for still in found.stills if set(still.roles) == {BACKGROUND})
    stills = tuple(still for still in found.stills if set(still.roles) != {BACKGROUND})
    if found.exported and (options.size or options.columns):
        raise ValueError("clips of an export are taken as they are: leave out size and columns")
    if not (stills or found.videos or found.tables or found.exported):
        inputs = ", ".join(options.inputs)
        raise ValueError(without_secrets(f"no layered still or film in {inputs}"))
    said = _said(found, options.prompts)
    mappings = tuple(mapping_of(part.columns, options.columns) for part in found.tables)
    exported = tuple(found.exported)
    return PackPlan(
        stills, tuple(found.videos), pool, said, tuple(found.tables), mappings, exported
    )


def _said(found: Listing, prompts: str | None) -> Table:
    """What a table of prompts and the index files say, by uri."""
    names = {entry.uri: entry.name for entry in (*found.stills, *found.videos)}
    given = read_prompt_table(Path(prompts)) if prompts else {}
    if prompts and not names:
        raise ValueError(f"{prompts}: rows of tables and exports say this themselves")
    if prompts and (unnamed := check_matches(given, names, prompts)):
        tell(unnamed)
    return {
        uri: merged(entry_for(uri, given, name), entry_for(uri, found.prompts, name))
        for uri, name in names.items()
    }


def plan_units(plan: PackPlan, size: int = UNIT_STILLS) -> list[Unit]:
    """Ranges of stills or table rows, single videos and pieces of exports, named after their files
    and sizes."""
    pool = [(still.uri, _bytes(still)) for still in plan.pool]
    units = []
    for start in range(0, len(plan.stills), size):
        chosen = plan.stills[start : start + size]
        key = unit_key(pool, start, [(still.uri, _bytes(still)) for still in chosen])
        payload = {"uri": chosen[0].uri, "start": start, "stop": start + len(chosen)}
        units.append(Unit(key, start, payload))
    for place, video in enumerate(plan.videos):
        key = unit_key(pool, place, video.uri, _bytes(video))
        units.append(Unit(key, len(plan.stills) + place, {"uri": video.uri, "video": place}))
    order = len(plan.stills) + len(plan.videos)
    for place, part in enumerate(plan.tables):
        mapping = sorted(plan.mappings[place].items())
        for start in range(0, part.rows, size):
            stop = min(part.rows, start + size)
            payload = {"uri": part.uri, "table": place, "start": start, "stop": stop}
            key = unit_key(pool, place, part.uri, part.rows, mapping, start)
            units.append(Unit(key, order, payload))
            order += 1
    for place, piece in enumerate(plan.exported):
        key = unit_key("export", piece.uri, piece.identity)
        units.append(Unit(key, order + place, {"uri": piece.uri, "exported": place}))
    return units


def uris_of(payload: Mapping[str, Any], plan: PackPlan) -> set[str]:
    """The names under which rows and rejected rows of a unit of work may be on record."""
    uri = payload["uri"]
    if "start" not in payload:
        return {uri}
    places = range(payload["start"], payload["stop"])
    if "table" in payload:
        return {uri, *(f"{uri}#{place}" for place in places)}
    return {plan.stills[place].uri for place in places}


def _bytes(entry: Group) -> list[int]:
    return [path.stat().st_size if path.is_file() else -1 for _, path in entry.files]
