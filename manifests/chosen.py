"""Which subject is meant, chosen by hand: a box, points, and the time at which they hold.

Coordinates are shares of the whole picture as a player shows it (upright, black bars included), x
from its left edge and y from its top. So they stay the same for a video that is scaled or encoded
again, and for clips of any size.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from manifests.common import Strict
from manifests.yaml_file import shown

MAX_POINTS = 64
MIN_SIDE = 0.01  # of a box
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
Box = tuple[float, float, float, float]
Point = tuple[float, float, bool]
"""x, y, and whether the subject is there; else it is something else."""


def parse_box(value: Any) -> Box:
    """``"0.1,0.2,0.5,0.9"`` or four numbers: left, top, right, bottom. ValueError for others."""
    numbers = _numbers(value)
    if numbers is None or len(numbers) != 4:
        raise ValueError(f"a box is X0,Y0,X1,Y1, such as 0.1,0.2,0.5,0.9, not {shown(value)}")
    _check_shares(numbers, value)
    x0, y0, x1, y1 = numbers
    if x1 - x0 < MIN_SIDE or y1 - y0 < MIN_SIDE:
        raise ValueError(
            f"a box goes from its left top to its right bottom corner and is at least {MIN_SIDE:g} "
            f"wide and high, unlike {shown(value)}"
        )
    return x0, y0, x1, y1


def parse_points(value: Any) -> tuple[Point, ...]:
    """``"0.3,0.4;0.8,0.2,0"`` or a list of lists: x, y, and 0 behind points that are not on the
    subject. ValueError for others, and where no point is on it."""
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not 1 <= len(parts) <= MAX_POINTS:
        raise ValueError(f"points are X,Y[;X,Y...], at most {MAX_POINTS}, not {shown(value)}")
    points = []
    for part in parts:
        numbers = _numbers(part)
        if numbers is None or len(numbers) not in (2, 3) or numbers[2:] not in ([], [0.0], [1.0]):
            raise ValueError(f"a point is X,Y or, not on the subject, X,Y,0, not {shown(part)}")
        _check_shares(numbers, part)
        points.append((numbers[0], numbers[1], numbers[2:] != [0.0]))
    return tuple(points)


def _numbers(value: Any) -> list[float] | None:
    """Up to four plain numbers; None for anything else."""
    parts = value.strip().split(",") if isinstance(value, str) and len(value) < 200 else value
    if not isinstance(parts, list | tuple) or not 2 <= len(parts) <= 4:
        return None
    found = []
    for part in parts:
        written = isinstance(part, str) and NUMBER.fullmatch(part.strip())
        if not written and not (isinstance(part, int | float) and -1e9 < part < 1e9):
            return None
        found.append(float(part))
    return found


def _check_shares(numbers: list[float], value: Any) -> None:
    if not all(0 <= number <= 1 for number in numbers):
        raise ValueError(
            "places are shares of the picture's width and height, 0 to 1 (divide pixels by them), "
            f"unlike {shown(value)}"
        )


class Choice(Strict):
    """Where the subject is at one time of a video."""

    box: Annotated[Box, BeforeValidator(parse_box)] | None = Field(
        None, description="what it is inside of"
    )
    points: Annotated[tuple[Point, ...], BeforeValidator(parse_points)] | None = Field(
        None, description="places on it, and places that are not"
    )
    at: float | None = Field(None, ge=0, le=1e6, description="seconds; none: as each shot begins")

    @model_validator(mode="after")
    def _says_where(self) -> Choice:
        if self.box is None and not any(on for _, _, on in self.points or ()):
            raise ValueError("a subject is chosen by a box or by points, of which one is on it")
        return self
