"""Texts of a corpus in Markdown: none of them can become markup or a table of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from layerflow.locations import one_line

ESCAPES = str.maketrans({sign: f"&#{ord(sign)};" for sign in "&<>|\\`*_[]#!"})


def plain(text: object, limit: int = 160) -> str:
    """A text as one line of a Markdown table, with no markup left in it."""
    line = one_line(str(text))
    line = line if len(line) <= limit else line[:limit] + "..."
    escaped = line.translate(ESCAPES)
    return re.sub(r"(?<=[A-Za-z0-9])&#95;(?=[A-Za-z0-9])", "_", escaped)  # is no markup in a word


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(plain(c) for c in row)} |" for row in rows)])
