"""List input files, local and remote: sorted, inside their roots, never showing a local path."""

from __future__ import annotations

import glob
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from layerflow.locations import (
    LOCAL_SCHEMES,
    below,
    check_inside,
    clean_uri,
    escape_name,
    is_inside,
    locate,
    one_line,
    spellings,
    suffix_of,
    without_secrets,
)
from pipelines.inputs.chosen import chosen_in
from pipelines.inputs.prompts import is_known_column, said_in, sidecar_names
from pipelines.inputs.rows import TABLE_SUFFIXES, read_rows, video_of

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif", ".ogv"}
    | {".qt", ".mp4v", ".f4v", ".3gp", ".3gpp", ".3g2", ".mj2", ".ismv", ".mk3d", ".divx", ".xvid"}
    | {".mts", ".m2ts", ".m2t", ".trp", ".tp", ".tod", ".mod", ".mpe", ".mpv", ".m1v", ".m2v"}
    | {".m2p", ".vob", ".evo", ".wmv", ".asf", ".wtv", ".flv", ".ogg", ".ogm", ".ogx", ".mxf"}
    | {".gxf", ".nut", ".dv", ".dif", ".rm", ".rmvb", ".amv", ".ivf", ".y4m", ".apng"}
)
STILL_SUFFIXES = frozenset({".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".avif"})
SIDECAR_SUFFIXES = frozenset({".json", ".txt"})
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
SAID = 3  # names that a message about left out files gives
MATTE_MARKS = frozenset({".mask", ".alpha"})


@dataclass(frozen=True, slots=True)
class InputVideo:
    """One input file.

    location: a local path or a URL that fsspec opens. uri: the name under which the corpus records
    it. row: what the table that named it says of it (``pipelines.inputs.prompts``). root: the local
    folder that its sidecars and mattes must lie in. problem: why it is not to be used. beside: URLs
    of the sidecars of a remote file.
    """

    location: str
    uri: str
    row: Mapping[str, str] = field(default_factory=dict)
    root: str = ""
    problem: str | None = None
    beside: tuple[str, ...] = ()

    @property
    def remote(self) -> bool:
        return "://" in self.location

    @property
    def path(self) -> Path:
        """The local file. ValueError for a remote one: see ``local_copy``."""
        if self.remote:
            raise ValueError(f"{self.uri} is remote")
        return Path(self.location)


@dataclass
class LeftOut:
    """Files of a folder that are not taken: links that lead out of it or nowhere, other suffixes
    than those that are read, folders that cannot be read."""

    links: list[str] = field(default_factory=list)
    suffixes: Counter[str] = field(default_factory=Counter)
    closed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = []
        for names, what in ((self.links, "links that lead out of it or nowhere"),
                            (self.closed, "folders that cannot be read")):  # fmt: skip
            if names:
                more = ", ..." if len(names) > SAID else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:SAID])}{more})")
        if self.suffixes:
            kinds = ", ".join(f"{count} {name}" for name, count in self.suffixes.most_common(12))
            parts.append(f"{self.suffixes.total()} files of kinds that are not read ({kinds})")
        return "; ".join(parts)

    def count(self, path: Path) -> None:
        """Count a file of a kind that is not read, unless it says something of others."""
        suffix = path.suffix.lower()
        if suffix not in SIDECAR_SUFFIXES | TABLE_SUFFIXES:
            self.suffixes[escape_name(suffix) or "without suffix"] += 1

    def say(self, where: str) -> None:
        """One line on stderr, if there is anything to say."""
        if str(self):
            tell(f"{without_secrets(where)}: left out: {self}")


def tell(line: str) -> None:
    """Say something that a user should know although the job goes on."""
    print(f"layerflow: {one_line(line)}".encode("utf-8", "replace").decode(), file=sys.stderr)


def walk(root: Path, left: LeftOut | None = None) -> list[tuple[Path, PurePosixPath]]:
    """(path, path below root) of all visible files of a folder, sorted.

    Links are followed where they stay inside (``layerflow.locations.is_inside``); a link to a
    folder is only entered where that is hidden, since what is visible is listed at its own place.
    """
    base, left = root.resolve(), LeftOut() if left is None else left
    found: list[tuple[Path, PurePosixPath]] = []
    entered = {base}

    def visit(folder: Path) -> None:
        try:
            paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
        except OSError:
            left.closed.append(escape_name(folder.relative_to(root).as_posix()))
            return
        for path in paths:
            linked = path.is_symlink()
            if linked and (not is_inside(path, root) or not path.exists()):
                left.links.append(escape_name(path.relative_to(root).as_posix()))
            elif path.is_dir():
                target = path.resolve()
                hidden = any(part.startswith(".") for part in target.relative_to(base).parts)
                if (hidden or not linked) and target not in entered:
                    entered.add(target)
                    visit(path)
            elif path.is_file():
                found.append((path, PurePosixPath(path.relative_to(root).as_posix())))

    visit(root)
    left.links.sort()
    return sorted(found)


def list_sources(inputs: Sequence[str]) -> list[InputVideo]:
    """Input files in sorted order, each once.

    An input is a file, a folder (everything below it), a glob pattern, a URL that fsspec knows
    (``s3://``, ``hf://``; file or folder), or a table (CSV, JSONL, Parquet) with a ``video`` column
    of URLs or paths below the table's folder. A uri is the path below its input folder, or the
    name of a file given by itself, or the URL without credentials. Left out are links that lead out
    of their folder, files of other kinds (both are said), and mattes (``clip.mask.mkv``,
    ``clip.alpha.png``) that lie beside what they belong to.

    Raises ValueError for an input that does not exist, a table with a row that names what it may
    not, or when nothing is found.
    """
    found: dict[str, InputVideo] = {}
    for item in inputs:
        left = LeftOut()
        for source in _listed(item, left):
            key = source.location if source.remote else str(source.path.resolve())
            found.setdefault(key, source)
        left.say(item)
    if not found:
        known, named = ", ".join(sorted(VIDEO_SUFFIXES)), without_secrets(", ".join(inputs))
        raise ValueError(f"no input file ({known}) in {named}")
    return sorted(found.values(), key=lambda source: (source.uri, source.location))


def _listed(item: str, left: LeftOut) -> Iterable[InputVideo]:
    if "://" in item:
        return _remote(item, left)
    root = Path(item)
    if root.is_file():
        inner = Path(root.stem).suffix.lower() if root.suffix.lower() in COMPRESSED else root.suffix
        if inner.lower() in TABLE_SUFFIXES:
            return _tabled(root)
        return [InputVideo(str(root), escape_name(root.name), root=str(root.parent))]
    if root.is_dir():
        return _below(root, left)
    if glob.has_magic(item):
        return _matched(item, left)
    raise ValueError(f"{item}: no such file or folder")


def _below(root: Path, left: LeftOut) -> Iterable[InputVideo]:
    for path, relative in walk(root, left):
        if _wanted(path, left):
            yield InputVideo(str(path), escape_name(str(relative)), root=str(root))


def _matched(pattern: str, left: LeftOut) -> Iterable[InputVideo]:
    """The files of a pattern; its root is the folder before the first part with a wildcard."""
    parts = Path(pattern).parts
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    for path in map(Path, sorted(glob.glob(pattern, recursive=True))):
        if path.is_file() and _wanted(path, left):
            if is_inside(path, root):
                yield InputVideo(str(path), escape_name(path.name), root=str(root))
            else:
                left.links.append(escape_name(path.name))


def _wanted(path: Path, left: LeftOut) -> bool:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        left.count(path)
        return False
    base, media = Path(path.stem), VIDEO_SUFFIXES | STILL_SUFFIXES
    is_matte = base.suffix.lower() in MATTE_MARKS and any(_with_suffix(path, base.stem, media))
    return not is_matte


def matte_beside(path: Path, root: Path | None = None) -> Path | None:
    """The file of a local video's matte: ``clip.mask.mkv`` or ``clip.alpha.mp4`` beside it.

    Raises ValueError for a link that leads out of ``root`` (by default its own folder).
    """
    for mark in sorted(MATTE_MARKS):
        for stem in spellings(path.stem, [mark]):
            found = next(_with_suffix(path, stem, VIDEO_SUFFIXES), None)
            if found is not None:
                return check_inside(found, root or path.parent)
    return None


def _with_suffix(path: Path, stem: str, suffixes: Iterable[str]) -> Iterator[Path]:
    """Files beside a path with a stem and one of the suffixes, in any usual case."""
    beside = (path.with_name(name) for name in spellings(stem, sorted(suffixes)))
    return (found for found in beside if found.is_file())


def uri_of(location: str, root: str) -> str:
    """The name on record of a remote file: its URL without credentials and signatures; of a
    ``file://`` URL the path below ``root``, both as fsspec writes them."""
    if is_local_url(location):
        return below(Path(location.rpartition("://")[2]), Path(root.rpartition("://")[2]))
    return clean_uri(location)


def is_local_url(location: str) -> bool:
    """Whether a URL is one of this machine's files."""
    return location.rpartition("://")[0].rpartition("::")[2].lower() in LOCAL_SCHEMES


def find_remote(url: str) -> tuple[Any, str, dict[str, dict[str, Any]]]:
    """The file system of a URL that fsspec opens, the root there, and all files below it: name ->
    details. Raises ValueError when it cannot be listed."""
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(url)
        return system, root, system.find(root, detail=True)
    except Exception as error:
        raise ValueError(without_secrets(f"{url}: cannot be listed: {error}")) from error


def _remote(url: str, left: LeftOut) -> Iterable[InputVideo]:
    system, root, names = find_remote(url)
    if not names:
        raise ValueError(f"{clean_uri(url)}: no such file or folder")
    known = {n for n in names if not is_local_url(url) or is_inside(Path(n), Path(root))}
    for name in sorted(names):
        folder = name[: -len(PurePosixPath(name).name)]
        location = url if name == root else system.unstrip_protocol(name)
        top = root if name != root else str(PurePosixPath(root).parent)
        if is_local_url(location) and not is_inside(Path(name), Path(top)):
            left.links.append(below(Path(name), Path(top)))
        elif name == root or suffix_of(location).lower() in VIDEO_SUFFIXES:
            sidecars = (f"{folder}{other}" for other in sidecar_names(PurePosixPath(name).name))
            beside = tuple(system.unstrip_protocol(n) for n in sidecars if n in known)
            yield InputVideo(location, uri_of(location, top), beside=beside)
        else:
            left.count(Path(f"remote{suffix_of(location)}"))


def _tabled(table: Path) -> Iterable[InputVideo]:
    for number, row in enumerate(read_rows(table, is_known_column).rows, 1):
        video = video_of(row, f"{table}: row {number}")
        try:
            location = locate(video, table.parent)
        except ValueError as error:
            raise ValueError(f"{table}: row {number}: {error}") from error
        try:
            said, problem = said_in(row) | chosen_in(row, "where the subject is"), None
        except ValueError as error:
            said, problem = {}, f"{table.name} row {number}: {error}"
        remote = "://" in location
        uri = clean_uri(location) if remote else below(Path(location), table.parent)
        yield InputVideo(location, uri, said, "" if remote else str(table.parent), problem)


@contextmanager
def local_copy(location: str, max_bytes: int) -> Iterator[Path]:
    """The file itself when it is local, else a temporary copy that goes away afterwards.

    Raises ValueError when it cannot be fetched or is over ``max_bytes``.
    """
    if "://" not in location:
        yield Path(location)
        return
    from fsspec.core import url_to_fs

    with tempfile.TemporaryDirectory(prefix="layerflow-") as folder:
        copy = Path(folder) / f"input{suffix_of(location)}"
        try:
            system, name = url_to_fs(location)
            size = system.size(name)
            if size is not None and size > max_bytes:
                raise ValueError(f"{size} bytes is over the limit of {max_bytes}")
            with system.open(name, "rb") as remote, copy.open("wb") as local:
                _copy(remote, local, max_bytes)
        except Exception as error:
            raise ValueError(without_secrets(f"cannot be fetched: {error}")) from error
        yield copy


def _copy(remote: Any, local: Any, max_bytes: int) -> None:
    held = 0
    while chunk := remote.read(1 << 20):
        held += len(chunk)
        if held > max_bytes:  # a server need not tell, or keep to, a length
            raise ValueError(f"over the limit of {max_bytes} bytes")
        local.write(chunk)
