"""List input files: sorted, inside their roots, with uris that never show a local path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif", ".ogv"}
)
STILL_SUFFIXES = frozenset({".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp"})
MATTE_MARKS = frozenset({".mask", ".alpha"})


@dataclass(frozen=True)
class Source:
    """One input file: where it is, and the uri under which the corpus records it."""

    path: Path
    uri: str


def list_sources(inputs: Sequence[str], suffixes: Iterable[str] = VIDEO_SUFFIXES) -> list[Source]:
    """Files named directly, and files of those suffixes below folders, in sorted order.

    A uri is the path below its input folder, or the name of a file given by itself. Left out are
    links that lead out of their folder, and mattes (``clip.mask.mkv``, ``clip.alpha.png``) that
    lie beside what they belong to. Raises ValueError for an input that does not exist or when
    nothing is found.
    """
    allowed = frozenset(suffixes)
    found: dict[Path, Source] = {}
    for item in inputs:
        root = Path(item)
        if root.is_file():
            found.setdefault(root.resolve(), Source(root, root.name))
        elif root.is_dir():
            for source in _below(root, allowed):
                found.setdefault(source.path.resolve(), source)
        else:
            raise ValueError(f"{item}: no such file or folder")
    if not found:
        raise ValueError(f"no input file ({', '.join(sorted(allowed))}) in {', '.join(inputs)}")
    return sorted(found.values(), key=lambda source: (source.uri, str(source.path)))


def _below(root: Path, suffixes: frozenset[str]) -> Iterable[Source]:
    base = root.resolve()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or path.suffix.lower() not in suffixes or not path.is_file():
            continue
        if path.resolve().is_relative_to(base) and not _is_matte_of_a_neighbour(path):
            yield Source(path, relative.as_posix())


def _is_matte_of_a_neighbour(path: Path) -> bool:
    base = Path(path.stem)
    if base.suffix.lower() not in MATTE_MARKS:
        return False
    neighbours = (path.with_name(base.stem + s) for s in VIDEO_SUFFIXES | STILL_SUFFIXES)
    return any(neighbour.is_file() for neighbour in neighbours)
