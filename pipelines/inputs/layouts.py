"""Recognise which files of a folder belong together: colour, alpha, background, whole picture.

Four conventions cover nearly every set of cut-outs, matting data and layered stills:

- folders named by role, equal file names inside: ``image/x.jpg`` + ``alpha/x.png``,
  ``fgr/0001.png`` + ``pha/0001.png`` + ``bgr/0001.png``;
- one folder, the role at the end of the name: ``x.png`` + ``x_alpha.png`` + ``x.bg.png``;
- a folder for each clip, files named by role: ``x/full_video.mp4`` + ``x/mask.mp4``;
- one folder, no roles at all, ``x.jpg`` + ``x.png``: see ``pipelines.inputs.twins``.

Numbered frames of one folder (``x/bl/0000.png`` ... + ``x/mask/0000.png`` ...) make a video.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from layerflow.locations import escape_name
from pipelines.inputs.listing import STILL_SUFFIXES, VIDEO_SUFFIXES, LeftOut, walk
from pipelines.inputs.numbering import Alike, even_runs, look_alike, sequences
from pipelines.inputs.twins import Twins
from pipelines.readers.stills import still_size

ROLE_WORDS = {
    "foreground": ("foreground", "foregrounds", "fg", "fgr"),
    "alpha": ("alpha", "alphas", "mask", "masks", "matte", "mattes", "pha", "gt", "annotations"),
    "background": ("background", "backgrounds", "bg", "bgr", "impainting"),
    "blended": (
        *("image", "images", "img", "imgs", "original", "original_image", "blurred_image"),
        *("blended", "bl", "com", "composite", "merged", "full", "rgb", "jpegimages", "full_video"),
    ),
    "ignored": ("trimap", "trimaps"),
}
ROLE_OF = {word: role for role, words in ROLE_WORDS.items() for word in words}
# At the end of a file name, words such as "full" or "image" are more often part of the name.
_SUFFIX_WORDS = frozenset(ROLE_OF) - {"full", "rgb", "original", "merged", "img", "gt"}
MIN_FRAMES = 4  # numbered files of one role that are frames of a video rather than stills


@dataclass(frozen=True)
class Group:
    """The files of a still or video: (role, path), of numbered frames one after the other.

    uri: the first file's place below the root. key: the place without role words and suffix,
    which the files share. Roles are those of ``ROLE_WORDS``, and ``file`` for one that is alone.
    importer: of ``pipelines.inputs.importers``, which reads a still. problem: why it is not to be
    used.
    """

    uri: str
    key: str
    files: tuple[tuple[str, Path], ...]
    moving: bool = False
    importer: str = "auto"
    problem: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def roles(self) -> dict[str, Path]:
        """role -> its file, or its first frame."""
        return dict(reversed(self.files))

    @property
    def layers(self) -> dict[str, list[Path]]:
        """role -> its file, or the frames in order."""
        found: dict[str, list[Path]] = {}
        for role, path in self.files:
            found.setdefault(role, []).append(path)
        return found


def files_below(
    root: Path, suffixes: Iterable[str], left: LeftOut | None = None
) -> Iterator[tuple[Path, PurePosixPath]]:
    """(path, path below root) of visible files, sorted; links that lead out are left out.

    left: what is left out is added to it.
    """
    allowed = frozenset(suffixes)
    for path, relative in walk(root, left):
        if path.suffix.lower() in allowed:
            yield path, PurePosixPath(escape_name(str(relative)))
        elif left is not None:
            left.count(path)


def group_files(
    root: Path,
    suffixes: Iterable[str] = STILL_SUFFIXES | VIDEO_SUFFIXES,
    twins: Twins | None = None,
) -> list[Group]:
    """The groups of a folder, sorted by uri. Trimaps are left out; what else is, is said."""
    left = LeftOut()
    groups = group_listed(list(files_below(root, suffixes, left)), twins)
    left.say(root.name)
    return groups


def group_listed(
    listed: Sequence[tuple[Path, PurePosixPath]], twins: Twins | None = None
) -> list[Group]:
    """The groups of files that were listed in order: (path, path below the root).

    twins: knows mattes among stills of one stem.
    """
    by_key: dict[str, dict[str, tuple[Path, PurePosixPath]]] = {}
    stems = {relative.with_suffix("").as_posix() for _, relative in listed}
    named = _folders_by_role(stems)
    again: dict[tuple[str, str], list[tuple[Path, PurePosixPath]]] = {}
    for path, relative in listed:
        key, role = _place(relative, stems, named)
        slot = by_key.setdefault(key, {})
        # Two files for one role (x.png and x.jpg): each stands for itself, or one is the matte.
        if role in slot:
            again.setdefault((key, role), []).append((path, relative))
            by_key.setdefault(relative.as_posix(), {})["file"] = (path, relative)
        else:
            slot[role] = (path, relative)
    for (key, role), others in again.items():
        _pair_twins(by_key, key, role, others, twins or Twins())
    groups = [_group(key, slot) for key, slot in by_key.items()]
    return sorted((group for group in groups if group), key=lambda group: group.uri)


def _pair_twins(
    by_key: dict[str, dict[str, tuple[Path, PurePosixPath]]],
    key: str,
    role: str,
    others: Sequence[tuple[Path, PurePosixPath]],
    twins: Twins,
) -> None:
    """Give a picture its matte of the same stem; more pictures of that stem stay alone."""
    slot = by_key[key]
    files = [slot[role], *others]
    beside = {relative.with_suffix("") for _, relative in files}
    stills = all(path.suffix.lower() in STILL_SUFFIXES for path, _ in files)
    if role in ("alpha", "background", "ignored") or "alpha" in slot or len(beside) > 1:
        return
    matte = twins.matte([path for path, _ in files]) if stills else None
    if matte is None:
        return
    picture = next(found for found in files if found[0] != matte)
    slot[role], slot["alpha"] = picture, next(found for found in files if found[0] == matte)
    for found in others:
        by_key.pop(found[1].as_posix(), None)
    for found in files:
        if found not in slot.values():
            by_key[found[1].as_posix()] = {"file": found}


def _folders_by_role(stems: set[str]) -> set[str]:
    """Folders whose files are named by at least two roles, one of them the whole or the matte."""
    roles: dict[str, set[str]] = {}
    for stem in stems:
        path = PurePosixPath(stem)
        if path.name.lower() in ROLE_OF:
            roles.setdefault(path.parent.as_posix(), set()).add(ROLE_OF[path.name.lower()])
    return {
        folder for folder, found in roles.items() if len(found) > 1 and found & {"blended", "alpha"}
    }


def _place(relative: PurePosixPath, stems: set[str], named: set[str]) -> tuple[str, str]:
    """The key under which a file is grouped, and its role."""
    plain = relative.with_suffix("").as_posix()
    *folders, stem = PurePosixPath(plain).parts
    if relative.parent.as_posix() in named and stem.lower() in ROLE_OF:
        return relative.parent.as_posix(), ROLE_OF[stem.lower()]
    base, word = split_role(stem)
    if word is not None:
        key = PurePosixPath(*folders, base).as_posix()
        if key in stems or _has_sibling(key, plain, stems):
            return key, ROLE_OF[word]
    for index in reversed(range(len(folders))):
        role = ROLE_OF.get(folders[index].lower())
        if role is not None:
            rest = [*folders[:index], *folders[index + 1 :], stem]
            return PurePosixPath(*rest).as_posix(), role
    return plain, "file"


def split_role(stem: str) -> tuple[str, str | None]:
    """``x_alpha`` -> (``x``, ``alpha``); (stem, None) when it does not end in a role word."""
    match = re.fullmatch(r"(.+)[._-]([a-zA-Z]+)", stem)
    if match and match[2].lower() in _SUFFIX_WORDS:
        return match[1], match[2].lower()
    return stem, None


def _has_sibling(key: str, own: str, stems: set[str]) -> bool:
    forms = (f"{key}{mark}{word}" for mark in "._-" for word in _SUFFIX_WORDS)
    return any(form in stems and form != own for form in forms)


def _group(key: str, slot: Mapping[str, tuple[Path, PurePosixPath]]) -> Group | None:
    files = {role: path for role, (path, _) in slot.items() if role != "ignored"}
    if not files:
        return None
    if len(files) == 1:
        role, path = next(iter(files.items()))
        first = slot[role][1]
        # Alone, a whole picture is just a file; a matte or a background is still one.
        files = {role if role in ("alpha", "background") else "file": path}
    else:
        if "file" in files:  # x.png beside x_alpha.png is the whole picture
            taken = "blended" in files
            files["foreground" if taken else "blended"] = files.pop("file")
        order = ("foreground", "blended", "background", "alpha")
        names = dict(slot.values())
        first = next(names[files[role]] for role in order if role in files)
    return Group(first.as_posix(), key, tuple(sorted(files.items())))


def split_videos(
    groups: Iterable[Group],
    size_of: Callable[[Path], object] = still_size,
    alike: Alike = look_alike,
) -> tuple[list[Group], list[Group]]:
    """Videos (files, numbered frames of a folder) and what remains: single pictures.

    size_of: of a still, to see whether numbered ones are all alike. alike: whether neighbours of
    files in order show the same thing, asked where the names or the numbers leave a doubt.
    """
    videos, stills = [], []
    numbered: dict[tuple[str, tuple[str, ...]], list[Group]] = {}
    for group in groups:
        roles = tuple(role for role, _ in group.files)
        folder = PurePosixPath(group.key).parent.as_posix()
        if any(path.suffix.lower() in VIDEO_SUFFIXES for _, path in group.files):
            videos.append(replace(group, moving=True))
        elif folder != "." and roles != ("background",):
            numbered.setdefault((folder, roles), []).append(group)
        else:
            stills.append(group)
    for (folder, roles), pictures in numbered.items():
        found = _frames(folder, pictures, roles, size_of, alike)
        videos += found
        taken = {path for video in found for _, path in video.files}
        stills += [group for group in pictures if group.files[0][1] not in taken]
    return sorted(videos, key=lambda video: video.uri), sorted(stills, key=lambda group: group.uri)


def _frames(
    folder: str,
    pictures: list[Group],
    roles: tuple[str, ...],
    size_of: Callable[[Path], object],
    alike: Alike,
) -> list[Group]:
    """The videos among the pictures of one folder: frames whose numbers rise evenly.

    A gap in the numbers ends a video. A lone video has the name of its folder.
    """
    found: list[tuple[str, list[Group], bool]] = []
    for names in sequences([group.name for group in pictures]):
        frames = [pictures[place] for place in names.places]
        runs = even_runs(names.numbers)
        for run in runs:
            sure = len(runs) == 1 and all(frame.name.isdecimal() for frame in frames)
            if _is_video(frames[run], roles, size_of):
                paths = [frame.files[0][1] for frame in frames[run]]
                if sure or len(roles) > 1 or alike(paths):
                    found.append((names.label, frames[run], len(runs) > 1))
    videos = []
    for label, frames, gaps in found:
        alone = len({name for name, _, _ in found}) == 1 or not label
        key = folder if alone else f"{folder}/{label}"
        files = tuple((role, frame.roles[role]) for role in roles for frame in frames)
        uri = PurePosixPath(frames[0].uri)
        own = uri.parent if key == folder else uri.parent / label
        own = own / uri.stem if gaps else own
        videos.append(Group(own.as_posix(), key, files, moving=True))
    return videos


def _is_video(
    frames: list[Group], roles: tuple[str, ...], size_of: Callable[[Path], object]
) -> bool:
    """All of one size; a lone role may be cut-outs and needs twice as many."""
    if len(frames) < (MIN_FRAMES if len(roles) > 1 else 2 * MIN_FRAMES):
        return False
    probes = (frames[0], frames[len(frames) // 2], frames[-1])
    return len({size_of(frame.files[0][1]) for frame in probes}) == 1


_NOISE = {"out", "rgba", "cutout", "final", "copy", "sprite", "png", "img", "image", "layer"}


def words_of(name: str) -> str:
    """A caption out of a file name: ``animal-1.out`` -> ``animal``; empty when nothing is left."""
    name = re.sub("\ufffd(\ufffd|[89a-f][0-9a-f])", " ", name)  # bytes that were no text
    words = re.split(r"[\W_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name))
    kept = [re.sub(r"\d+$", "", word.lower()) for word in words]
    return " ".join(word for word in kept if word and not word.isdigit() and word not in _NOISE)
