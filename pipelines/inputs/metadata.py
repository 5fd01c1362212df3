"""Prompts and file lists in the JSON files of other layered sets.

- LayerFlow's films: ``meta*.json`` = ``{"videos": {name: {"fg_prompt", "bg_prompt",
  "bl_prompt"}}}``;
- LayerFlow's layered images: ``meta.json`` = ``{id: {"images", "images_bg", "images_fg", "prompt",
  "prompt_bg", "prompt_fg"}}``, paths below the folder of the file;
- a folder for each clip with a ``metadata.json`` in it (VidLayer).

What the JSON of a folder states of rights at its top holds for all that lies below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from layerflow.clip import BACKGROUND, FOREGROUND
from layerflow.locations import below, check_inside, locate, root_of
from pipelines.inputs.layouts import Group
from pipelines.inputs.prompts import Said, merged, rights_in, said_in, sidecar
from pipelines.inputs.rows import parse_json, read_text

MAX_BYTES = 256 << 20
RIGHTS_WORDS = re.compile(rb"licen[cs]|rights|copyright|terms|attribution", re.IGNORECASE)
FOLDER_FILES = ("metadata.json", "meta.json")
DATASET_FILE = "dataset_info.json"  # of a folder that ``save_to_disk`` wrote


def _read(path: Path) -> Any:
    check_inside(path, path.parent)
    try:
        return parse_json(read_text(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: not valid JSON: {error}") from error


def index_of(root: Path) -> dict[str, Said]:
    """What the index files of a folder say, by film name or by uri. ValueError for bad JSON."""
    found: dict[str, Said] = {}
    for path in sorted(root.glob("meta*.json")):
        content = _read(path)
        videos = content.get("videos") if isinstance(content, Mapping) else None
        if isinstance(videos, Mapping):
            for name, entry in videos.items():
                found[str(name)] = merged(said_in(entry), found.get(str(name), {}))
    images = layered_images(root)
    return found | (images[1] if images else {})


def said_of(
    uri: str, name: str, files: Sequence[Path], told: Mapping[str, str] | None = None
) -> Said:
    """Rights of a still or film, and what is told of it: ``told`` (a table's row), the sidecars of
    all its files and of its name, and the JSON of the folders that it lies in."""
    beside = [*files, *(path.with_name(f"{name}.png") for path in files[:1])]
    root = next((found for path in files if (found := root_of(path, uri))), None)
    if root is not None and (root / uri).is_dir():
        beside.append(root / uri)  # frames in a folder of their own: bird/0001.png, bird.json
    said = [sidecar(path, root) for path in dict.fromkeys(beside)]
    return merged(told or {}, *said, *folders_say(files, root))


def folders_say(files: Sequence[Path], root: Path | None) -> list[Said]:
    """Licence and attribution that the JSON of some files' folders, up to ``root``, states at its
    top."""
    if root is None:
        return []
    folders = dict.fromkeys(up for path in files for up in path.parents if up.is_relative_to(root))
    return [*map(_folder_rights, folders)]


@lru_cache(maxsize=256)
def _stated(path: Path, _stamp: tuple[int, int]) -> Said:
    """Rights at the top of a file; one that has no word of rights need not be JSON, nor small."""
    check_inside(path, path.parent)
    last = b""
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            if RIGHTS_WORDS.search(last + chunk.replace(b"\0", b"")):  # UTF-16 has zeros between
                return rights_in(_read(path), deep=False)
            last = chunk.replace(b"\0", b"")[-32:]
    return {}


def _folder_rights(folder: Path) -> Said:
    said = []
    for name in (*FOLDER_FILES, DATASET_FILE):
        path = folder / name
        if path.is_file():
            look = path.stat()
            said.append(_stated(path, (look.st_mtime_ns, look.st_size)))
    return merged(*said)


def folder_prompts(folder: Path) -> Said:
    """Prompts and rights from the ``metadata.json`` or ``meta.json`` of one clip's folder."""
    for name in FOLDER_FILES:
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
        files = [(FOREGROUND, foreground)]
        if isinstance(entry.get("images_bg"), str):
            files.append((BACKGROUND, _inside(root, entry["images_bg"], path.name)))
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
