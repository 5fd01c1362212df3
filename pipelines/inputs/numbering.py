"""Numbered names: which files of a folder are the frames of one sequence, in which order."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layerflow.media.cells import MediaError
from layerflow.media.frame_rate import evenly
from pipelines.readers.stills import read_still

NEGATIVE = re.compile(r"(|.*[-_.( ])-([0-9]+)([^0-9]*)")
ALIKE = 0.5  # share of two neighbouring frames' colours that are the same ones
PAIRS = 3


@dataclass(frozen=True)
class Numbered:
    """Names that differ in one number: its values and the places of the names, in order.

    label: the name without the number.
    """

    label: str
    numbers: tuple[int, ...]
    places: tuple[int, ...]


def sequences(names: Sequence[str]) -> list[Numbered]:
    """All names as sequences, each name in one of them; a name that has no number, or is the only
    one of its kind, is a sequence of one.

    ``shot.0001``, ``clip (1)``, ``frame-9`` and ``frame-10``, ``-1`` beside ``1``, and numbers of
    any script are known. Of several numbers that vary the last counts that makes sequences.
    """
    read = [_parts(name) for name in names]
    forms = {texts for texts, _ in read}
    clusters: dict[tuple[str, ...], list[tuple[tuple[int, ...], int]]] = {}
    for place, name in enumerate(names):
        texts, numbers = read[place]
        if NEGATIVE.fullmatch(name):  # a sign only where the same name without it is there
            plain = (*texts[:-2], texts[-2].removesuffix("-"), texts[-1])
            if plain in forms:
                texts, numbers = plain, (*numbers[:-1], -numbers[-1])
        clusters.setdefault(texts, []).append((numbers, place))
    return [found for texts, members in clusters.items() for found in _split(texts, members)]


def _parts(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The texts between the numbers of a name, and the numbers."""
    texts, numbers, run = [""], [], ""
    for sign in [*name, ""]:
        if sign and unicodedata.decimal(sign, None) is not None:
            run += sign
            continue
        if run:
            numbers.append(int(run[-18:]))
            texts.append("")
            run = ""
        value = unicodedata.numeric(sign, None) if sign else None
        if value is not None and unicodedata.category(sign) == "No" and value == int(value):
            numbers.append(int(value))  # circled and other numbers of one sign
            texts.append("")
        else:
            texts[-1] += sign
    return tuple(texts), tuple(numbers)


def _split(texts: tuple[str, ...], members: list[tuple[tuple[int, ...], int]]) -> list[Numbered]:
    """One cluster of names that differ in numbers only -> its sequences."""
    varying = [
        column
        for column in range(len(texts) - 1)
        if len({numbers[column] for numbers, _ in members}) > 1
    ]
    best: list[list[tuple[tuple[int, ...], int]]] = [[member] for member in members]
    counter = varying[0] if varying else -1
    for column in reversed(varying):
        parted: dict[tuple[int, ...], list[tuple[tuple[int, ...], int]]] = {}
        for member in members:
            parted.setdefault((*member[0][:column], *member[0][column + 1 :]), []).append(member)
        if len(parted) < len(best):
            best, counter = list(parted.values()), column
    if varying and len(best) == len(members):  # a number and a time, say: all change together
        firsts = {numbers[counter] for numbers, _ in members}
        best = [members] if len(firsts) == len(members) else best
    found = []
    for group in best:
        group.sort(key=lambda member: (member[0][counter] if counter >= 0 else 0, member[1]))
        values = tuple(numbers[counter] if counter >= 0 else 0 for numbers, _ in group)
        label = _label(texts, group[0][0], counter)
        found.append(Numbered(label, values, tuple(place for _, place in group)))
    return found


def _label(texts: tuple[str, ...], numbers: tuple[int, ...], counter: int) -> str:
    parts = [texts[0]]
    for column, number in enumerate(numbers):
        parts.append("" if column == counter else str(number))
        parts.append(texts[column + 1])
    return re.sub(r"[\s._-]*\(\s*\)|[\s._-]+$|^[\s._-]+", "", "".join(parts))


def even_runs(numbers: Sequence[int]) -> list[slice]:
    """The parts of rising numbers that have the usual step; a gap ends one. Empty when a number
    is there twice."""
    steps = [b - a for a, b in itertools.pairwise(numbers)]
    if not steps or 0 in steps:
        return []
    usual = Counter(steps).most_common(1)[0][0]
    ends = [place + 1 for place, step in enumerate(steps) if step != usual]
    return [slice(a, b) for a, b in itertools.pairwise([0, *ends, len(numbers)])]


def look_alike(paths: Sequence[Path]) -> bool:
    """Whether neighbouring pictures show the same thing: the colours of what is visible agree.

    Looks at some pairs only. False for what cannot be read.
    """
    firsts = evenly(len(paths) - 1, PAIRS)
    try:
        return all(_shared(_colours(paths[i]), _colours(paths[i + 1])) >= ALIKE for i in firsts)
    except MediaError:
        return False


def _colours(path: Path) -> np.ndarray:
    """Visible pixels by colour: float64 ``[512]``, as shares of the picture."""
    picture = read_still(path)
    step = max(1, round((picture.shape[0] * picture.shape[1] / 40_000) ** 0.5))
    small = picture[::step, ::step]
    bins = (small[..., :3].astype(np.int64) >> 5) @ np.array([64, 8, 1])
    weights = small[..., 3].ravel() / 255.0
    counts: np.ndarray = np.bincount(bins.ravel(), weights, 512) / bins.size
    return counts


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """How much two pictures' colours have in common, of the larger: 0 to 1."""
    return float(np.minimum(a, b).sum() / max(a.sum(), b.sum(), 1e-9))


Alike = Callable[[Sequence[Path]], bool]
