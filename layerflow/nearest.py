"""What somebody may have meant by a name that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``did you mean 'flicker'? `` for a name that is close to a known one, else nothing."""
    near = get_close_matches(str(name), [str(one) for one in known], 1)
    return f"did you mean {near[0]!r}? " if near else ""
