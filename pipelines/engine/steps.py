"""A job as a literal list of steps over one typed state.

    STEPS: Steps[Window] = (read_frames, score_frames, judge_early, make_layers, judge, encode)

A step is one named function that reads and fills the state; the first line of its docstring says
what it does. A step that turns the state's clip down raises ``Refused``; what follows is not run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

S = TypeVar("S")
Steps = tuple[Callable[[S], None], ...]


class Refused(Exception):  # noqa: N818 (an outcome, not a fault)
    """A clip is turned down. ``step``: the name that its rejected row records; ``str``: why."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(reason)
        self.step = step


def run_steps(steps: Steps[S], state: S) -> S:
    """The state after all steps. Raises ``Refused``, and whatever a step raises."""
    for step in steps:
        step(state)
    return state
