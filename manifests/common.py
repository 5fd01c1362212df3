"""What all manifests share: strict models, sizes, and loading with errors that name the field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from manifests.yaml_file import on_screen, read_yaml, shown


class Strict(BaseModel):
    """A model that refuses unknown keys and numbers that are not finite, and that does not change
    after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def parse_size(value: Any) -> tuple[int, int]:
    """``"240x360"`` (height x width, as in --size) or ``[240, 360]`` -> (240, 360)."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value.strip())
        if not match:
            raise ValueError(f"a size is HEIGHTxWIDTH, such as 480x720, not {shown(value)}")
        value = [int(match[1]), int(match[2])]
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"a size is HEIGHTxWIDTH, such as 480x720, not {shown(value)}")
    height, width = value
    if not all(isinstance(side, int) and 8 <= side <= 8192 for side in (height, width)):
        raise ValueError(f"both sides of a size lie in 8..8192, not {shown(value)}")
    return height, width


Size = Annotated[
    tuple[int, int],
    BeforeValidator(parse_size),
    PlainSerializer(lambda size: f"{size[0]}x{size[1]}", return_type=str),
]


UNION_TAGS = frozenset({"mine", "paste", "pack", "full", "lora", "blocks"})
"""pydantic's names of the members of our unions: no keys of a manifest at that place."""


def load(path: str | Path, model: type[Model], /, **overrides: Any) -> Model:
    """A manifest file as a checked model; overrides that are not None replace its fields.

    Raises ValueError with one line per wrong field.
    """
    content = read_yaml(Path(path))
    if isinstance(content, dict):
        content |= {name: value for name, value in overrides.items() if value is not None}
    return check(content, model, str(path))


def check(content: Any, model: type[Model], where: str) -> Model:
    """Validate plain values. Raises ValueError: where, field, what is wrong."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: a manifest is a mapping of keys, not {type(content).__name__}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ValueError(_explain(error, where)) from None


def _explain(error: ValidationError, where: str) -> str:
    """One line per field that is wrong; as many as fit a screen."""
    lines = []
    for item in error.errors(include_url=False):
        place = _place(item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{where}: {place}: unknown key")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {place}: {message} (got {shown(item['input'])})")
    return on_screen(lines)


def _place(location: Sequence[str | int]) -> str:
    """A field's path as people write it: ``stages[0].trains.rank``."""
    before: str | int = ""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in UNION_TAGS or not (before == "trains" or isinstance(before, int)):
            path += f".{part}"
        before = part
    return path.lstrip(".") or "(top)"
