"""Prompts and file lists in the JSON files of other layered sets.

- LayerFlow's films: ``meta*.json`` = ``{"videos": {name: {"fg_prompt", "bg_prompt",
  "bl_prompt"}}}``;
- LayerFlow's layered images: ``meta.json`` = ``{id: {"images", "images_bg", "images_fg", "prompt",
  "prompt_bg", "prompt_fg"}}``, paths below the folder of the file;
- a folder for each clip with a ``metadata.json`` in it (VidLayer).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerflow.locations import below, check_inside, locate
from pipelines.stages.layouts import Group
from pipelines.stages.prompts import Said, said_in
from pipelines.stages.rows import parse_json, read_text

MAX_BYTES = 256 << 20


def _read(path: Path) -> Any:
    check_inside(path, path.parent)
    try:
        return parse_json(read_text(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: not valid JSON: {error}") from error


def film_prompts(root: Path) -> dict[str, Said]:
    """What is said, by film name, in the ``meta*.json`` of a folder. ValueError for bad JSON."""
    found: dict[str, Said] = {}
    for path in sorted(root.glob("meta*.json")):
        content = _read(path)
        videos = content.get("videos") if isinstance(content, Mapping) else None
        if isinstance(videos, Mapping):
            for name, entry in videos.items():
                found.setdefault(str(name), {}).update(said_in(entry))
    return found


def folder_prompts(folder: Path) -> Said:
    """Prompts and rights from the ``metadata.json`` or ``meta.json`` of one clip's folder."""
    for name in ("metadata.json", "meta.json"):
        if (folder / name).is_file():
            return said_in(_read(folder / name))
    return {}


def layered_images(root: Path) -> tuple[list[Group], dict[str, Said]] | None:
    """LayerFlow's layered images: groups and prompts by uri; None for another kind of folder.

    Raises ValueError for an entry whose path leads out of the folder.
    """
    path = root / "meta.json"
    content = _read(path) if path.is_file() else None
    if not isinstance(content, Mapping):
        return None
    groups, prompts = [], {}
    for name, entry in content.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("images_fg"), str):
            continue
        foreground = _inside(root, entry["images_fg"], path.name)
        files = [("foreground", foreground)]
        if isinstance(entry.get("images_bg"), str):
            files.append(("background", _inside(root, entry["images_bg"], path.name)))
        uri = below(foreground, root)
        groups.append(Group(uri, str(name), tuple(sorted(files))))
        prompts[uri] = said_in(entry)
    return (sorted(groups, key=lambda group: group.uri), prompts) if groups else None


def _inside(root: Path, name: str, where: str) -> Path:
    try:
        found = locate(name, root, "the folder")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if "://" in found:
        raise ValueError(f"{where}: {found[:80]!r} is an address, not a file of the folder")
    return Path(found)
