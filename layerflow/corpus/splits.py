"""Which clip goes into which split: clips of one foreground source stay together.

Backgrounds are kept disjoint too where the corpus allows it; otherwise the overlap is counted.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOLERANCE = 0.05


@dataclass(frozen=True)
class Assignment:
    """names: the split of each row. shared_backgrounds: background sources in several splits.
    groups: how many groups of clips had to stay together."""

    names: list[str]
    shared_backgrounds: int
    groups: int


def parse_fractions(text: str) -> dict[str, float]:
    """``train=0.9,validation=0.1`` -> fractions that sum to 1; a bare name is all of it.

    Raises ValueError for anything else. Names are letters, digits, ``_`` and ``.``, as
    ``datasets`` wants split names.
    """
    fractions: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        if not name.replace("_", "a").replace(".", "a").isalnum() or not name[0].isalpha():
            raise ValueError(f"{name!r} is no split name: use letters, digits, _ and .")
        if name in fractions:
            raise ValueError(f"split {name!r} is given twice")
        try:
            fractions[name] = float(number) if equals else 1.0
        except ValueError as error:
            raise ValueError(f"{part!r}: give fractions as train=0.9,validation=0.1") from error
    if any(not 0 < f <= 1 for f in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"the fractions of {text!r} must be positive and sum to 1")
    return fractions


def foreground_sources(row: Mapping[str, Any]) -> set[str]:
    """What a clip's foreground was made from: its file, content hash, subject, parents, own id.

    The last parent of a pasted clip is its background, the others are its foregrounds.
    """
    source = row["origin"]
    found = {f"id:{row['id']}", *tokens_of(source["uri"])}
    if source["sha256"]:
        found.add(f"sha256:{source['sha256']}")
    if row.get("subject"):
        found.add(f"subject:{row['subject']}")
    if row["kind"] == "pasted":
        found.update(*map(tokens_of, (source["parents"] or [])[:-1]))
    return found


def background_sources(row: Mapping[str, Any]) -> set[str]:
    """What a clip's background was made from; of clips that are not pasted, their own source."""
    if row["kind"] != "pasted":
        return foreground_sources(row)
    return set().union(*map(tokens_of, (row["origin"]["parents"] or [])[-1:]))


def tokens_of(name: str) -> set[str]:
    """A parent is named by a file, ``file#clip``, a clip's id or a content hash."""
    file, _, clip = name.partition("#")
    return {f"file:{file}", f"id:{clip or name}", f"sha256:{name}"}


def assign(
    rows: Iterable[Mapping[str, Any]],
    fractions: Mapping[str, float],
    seed: int = 0,
    kept: Sequence[str | None] | None = None,
) -> Assignment:
    """The split of every row (rows without media cells do), by whole groups.

    kept: the split that each row is in already, if any: a group stays where most of it is.
    Raises ValueError when there are fewer groups than splits.
    """
    if len(fractions) == 1:
        names = [next(iter(fractions)) for _ in rows]
        return Assignment(names, 0, min(1, len(names)))
    rows = list(rows)
    foregrounds = [foreground_sources(row) for row in rows]
    backgrounds = [background_sources(row) for row in rows]
    both = [f | b for f, b in zip(foregrounds, backgrounds, strict=True)]
    order = [str(row["id"]) for row in rows]
    for sources, within in ((both, TOLERANCE), (foregrounds, math.inf)):
        groups = _together(sources)
        if len(groups) < len(fractions):
            continue
        names = _deal(groups, order, fractions, seed, kept)
        moved = kept is not None and any(
            k not in (None, n) for k, n in zip(kept, names, strict=True)
        )
        if moved and within < math.inf:
            continue
        if kept is not None or (
            _deviation(names, fractions) <= within and len(set(names)) == len(fractions)
        ):
            return Assignment(names, _shared(names, backgrounds), len(groups))
    raise ValueError(
        f"{len(rows)} clips come from {len(_together(foregrounds))} foreground sources, too few "
        f"for {len(fractions)} splits that share none"
    )


def _together(sources: Iterable[set[str]]) -> list[list[int]]:
    """Rows that share a source, directly or through others (union-find)."""
    parent: dict[str, str] = {}

    def root(token: str) -> str:
        while parent.setdefault(token, token) != token:
            parent[token] = parent[parent[token]]
            token = parent[token]
        return token

    firsts = []
    for tokens in sources:
        firsts.append(min(tokens))
        for token in tokens:
            parent[root(token)] = root(firsts[-1])
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, first in enumerate(firsts):
        groups[root(first)].append(index)
    return list(groups.values())


def _deal(
    groups: list[list[int]],
    order: list[str],
    fractions: Mapping[str, float],
    seed: int,
    kept: Sequence[str | None] | None = None,
) -> list[str]:
    """Largest groups first, each to the split that lacks most; ties in a seeded order. Before them
    groups with rows that are ``kept`` in a split."""

    def held(group: list[int]) -> str | None:
        there = (kept[index] for index in group) if kept else ()
        found = Counter(name for name in there if name is not None and name in fractions)
        return max(sorted(found), key=found.__getitem__) if found else None

    def place(group: list[int]) -> tuple[bool, int, str]:
        key = min(order[index] for index in group)
        return (
            held(group) is None,
            -len(group),
            hashlib.sha256(f"{seed}/{key}".encode()).hexdigest(),
        )

    names = [""] * len(order)
    lacking = {name: fraction * len(order) for name, fraction in fractions.items()}
    for group in sorted(groups, key=place):
        name = held(group) or max(lacking, key=lambda split: lacking[split])
        lacking[name] -= len(group)
        for index in group:
            names[index] = name
    return names


def _deviation(names: Sequence[str], fractions: Mapping[str, float]) -> float:
    counts = Counter(names)
    return max(abs(counts[name] / len(names) - share) for name, share in fractions.items())


def _shared(names: Sequence[str], sources: Sequence[set[str]]) -> int:
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for name, tokens in zip(names, sources, strict=True):
        for token in tokens:
            splits[token].add(name)
    return len({token.partition(":")[2] for token, found in splits.items() if len(found) > 1})
