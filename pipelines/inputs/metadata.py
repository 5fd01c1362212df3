"""What the JSON files of folders say: prompts of one clip's folder, and rights.

What the JSON of a folder states of rights at its top holds for all that lies below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from layerflow.locations import check_inside, root_of
from pipelines.inputs.prompts import Said, merged, rights_in, said_in, sidecar
from pipelines.inputs.rows import parse_json, read_text

MAX_BYTES = 256 << 20
RIGHTS_WORDS = re.compile(rb"licen[cs]|rights|copyright|terms|attribution", re.IGNORECASE)
FOLDER_FILES = ("metadata.json", "meta.json")
DATASET_FILE = "dataset_info.json"  # of a folder that ``save_to_disk`` wrote


def read_json(path: Path) -> Any:
    """Raises ValueError for a link that leads out of the folder, and for bad JSON."""
    check_inside(path, path.parent)
    try:
        return parse_json(read_text(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: not valid JSON: {error}") from error


def said_of(
    uri: str, name: str, files: Sequence[Path], told: Mapping[str, str] | None = None
) -> Said:
    """Rights of a still or video, and what is told of it: ``told`` (a table's row), the sidecars of
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
                return rights_in(read_json(path), deep=False)
            last = chunk.replace(b"\0", b"")[-32:]
    return {}


def _folder_rights(folder: Path) -> Said:
    said = []
    for name in (*FOLDER_FILES, DATASET_FILE):
        path = folder / name
        if path.is_file():
            found = path.stat()
            said.append(_stated(path, (found.st_mtime_ns, found.st_size)))
    return merged(*said)


def folder_prompts(folder: Path) -> Said:
    """Prompts and rights from the ``metadata.json`` or ``meta.json`` of one clip's folder."""
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return said_in(read_json(folder / name))
    return {}
