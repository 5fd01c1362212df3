"""Index files of LayerFlow's own sets, and the importer of its layered images.

- videos: ``meta*.json`` = ``{"videos": {name: {"fg_prompt", "bg_prompt", "bl_prompt"}}}``;
- layered images: ``meta.json`` = ``{id: {"images", "images_bg", "images_fg", "prompt",
  "prompt_bg", "prompt_fg"}}``, paths below the folder of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from layerflow.locations import below, locate
from pipelines.inputs.importers import Importer, Listing
from pipelines.inputs.layouts import Group
from pipelines.inputs.metadata import read_json
from pipelines.inputs.prompts import Said, merged, said_in


def index_of(root: Path) -> dict[str, Said]:
    """What the index files of a folder say, by video name or by uri. ValueError for bad JSON."""
    found: dict[str, Said] = {}
    for path in sorted(root.glob("meta*.json")):
        content = read_json(path)
        videos = content.get("videos") if isinstance(content, Mapping) else None
        if isinstance(videos, Mapping):
            for name, entry in videos.items():
                found[str(name)] = merged(said_in(entry), found.get(str(name), {}))
    images = layered_images(root)
    return found | (images[1] if images else {})


def layered_images(root: Path) -> tuple[list[Group], dict[str, Said]] | None:
    """LayerFlow's layered images: groups and prompts by uri; None for another kind of folder.

    Raises ValueError for an entry whose path leads out of the folder.
    """
    path = root / "meta.json"
    content = read_json(path) if path.is_file() else None
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
        if "://" in found:
            raise ValueError(f"{found[:80]!r} is an address, not a file of the folder")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Path(found)


class LayeredImages(Importer):
    """LayerFlow's layered images: a ``meta.json`` that names the files."""

    name = "layerflow-images"

    def recognises(self, root: Path) -> bool:
        return layered_images(root) is not None

    def list(self, root: Path) -> Listing:
        listed = layered_images(root)
        if listed is None:
            raise ValueError(f"{root.name}: no meta.json with images_fg in it")
        return Listing(stills=listed[0], prompts=dict(listed[1]))


LAYERED_IMAGES = LayeredImages()
