"""Prompts and file lists in the JSON files of other layered sets.

- LayerFlow's films: ``meta*.json`` = ``{"videos": {name: {"fg_prompt", "bg_prompt",
  "bl_prompt"}}}``;
- LayerFlow's layered images: ``meta.json`` = ``{id: {"images", "images_bg", "images_fg", "prompt",
  "prompt_bg", "prompt_fg"}}``, paths below the folder of the file;
- a folder for each clip with a ``metadata.json`` in it (VidLayer).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.stages.layouts import Group
from pipelines.stages.prompts import MAX_PROMPT_CHARS

MAX_BYTES = 256 << 20
KEYS = {
    "foreground": (
        *("foreground_prompt", "fg_prompt", "prompt_fg", "foreground_caption", "fg_caption"),
        "foreground",
    ),
    "background": (
        *("background_prompt", "bg_prompt", "prompt_bg", "background_caption", "bg_caption"),
        "background",
    ),
    "blended": (
        *("blended_prompt", "bl_prompt", "full_prompt", "prompt", "full_caption", "video_caption"),
        *("caption", "text", "blended"),
    ),
}
Prompts = dict[str, str]


def prompts_in(entry: Any) -> Prompts:
    """The prompts that a JSON object holds, under any of the names in ``KEYS``."""
    if not isinstance(entry, Mapping):
        return {}
    found: Prompts = {}
    for layer, names in KEYS.items():
        for name in names:
            value = entry.get(name)
            if isinstance(value, str) and value.strip() and not _is_file_name(value):
                found[layer] = " ".join(value.split())[:MAX_PROMPT_CHARS]
                break
    return found


def _is_file_name(text: str) -> bool:
    return " " not in text.strip() and "." in text


def _read(path: Path) -> Any:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name}: over {MAX_BYTES} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: not valid JSON: {error}") from error


def film_prompts(root: Path) -> dict[str, Prompts]:
    """Prompts by film name from the ``meta*.json`` of a folder. Raises ValueError for bad JSON."""
    found: dict[str, Prompts] = {}
    for path in sorted(root.glob("meta*.json")):
        content = _read(path)
        videos = content.get("videos") if isinstance(content, Mapping) else None
        if isinstance(videos, Mapping):
            for name, entry in videos.items():
                found.setdefault(str(name), {}).update(prompts_in(entry))
    return found


def folder_prompts(folder: Path) -> Prompts:
    """Prompts from the ``metadata.json`` or ``meta.json`` of one clip's folder."""
    for name in ("metadata.json", "meta.json"):
        if (folder / name).is_file():
            return prompts_in(_read(folder / name))
    return {}


def layered_images(root: Path) -> tuple[list[Group], dict[str, Prompts]] | None:
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
        uri = foreground.relative_to(root.resolve()).as_posix()
        groups.append(Group(uri, str(name), tuple(sorted(files))))
        prompts[uri] = prompts_in(entry)
    return (sorted(groups, key=lambda group: group.uri), prompts) if groups else None


def _inside(root: Path, name: str, where: str) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"{where}: {name!r} leads out of the folder")
    return path
