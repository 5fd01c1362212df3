"""Subjects that are chosen by hand: columns of a table, for each video a row or several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from manifests.chosen import Choice
from manifests.common import check

BY_HAND = "by_hand"
"""What is said of a video besides its prompts and rights: JSON of a list of ``Choice``."""
COLUMNS = {f"subject_{name}": name for name in ("box", "points", "at")}
"""Column -> field of ``Choice``. Tables of others have columns ``box`` and ``points`` of their own.
"""
MAX_CHOICES = 1000


def chosen_in(row: Mapping[str, Any], place: str) -> dict[str, str]:
    """What a row says of the subject, under ``BY_HAND``; nothing where its cells are empty.

    Raises ValueError that names the place.
    """
    given = {name: row[column] for column, name in COLUMNS.items() if row.get(column) is not None}
    given = {name: cell for name, cell in given.items() if not _blank(cell)}
    if not given:
        return {}
    return {BY_HAND: json.dumps([check(given, Choice, place).model_dump(mode="json")])}


def _blank(cell: Any) -> bool:
    return isinstance(cell, str) and not cell.strip()


def more_chosen(said: Mapping[str, str], earlier: Mapping[str, str], place: str) -> dict[str, str]:
    """The choices of a row and of earlier rows of the same video, under ``BY_HAND``.

    Raises ValueError that names the place for two of one time, and for too many.
    """
    old, new = (json.loads(one.get(BY_HAND, "[]")) for one in (earlier, said))
    times = {choice["at"] for choice in old}
    if any(choice["at"] in times for choice in new):
        raise ValueError(f"{place}: the subject of this video is chosen twice for the same time")
    if len(old) + len(new) > MAX_CHOICES:
        raise ValueError(f"{place}: the subject of this video is chosen over {MAX_CHOICES} times")
    return {BY_HAND: json.dumps([*old, *new])} if old or new else {}


def choices_of(said: Mapping[str, str], choice: Choice | None) -> list[dict[str, Any]]:
    """The choices for a video as plain values: those said of it, else the job's own."""
    if said.get(BY_HAND):
        found: list[dict[str, Any]] = json.loads(said[BY_HAND])
        return found
    return [] if choice is None else [choice.model_dump(mode="json")]
