"""Untrusted YAML, read under limits on its size, its depth and the errors that it causes."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 100_000
MAX_TEXT = 2 * MAX_BYTES
"""Values and characters of a document in which every alias is written out."""
MAX_NUMBER = 64
"""Characters of one number; reading a longer one takes time that grows with its square."""

SCREEN_LINES = 20
SCREEN_WIDTH = 240


class UnsafeYamlError(yaml.YAMLError):
    """A document beyond the limits."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises ValueError that names the file and fits a screen."""
    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise ValueError(f"{path}: is no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"{path}: larger than {MAX_BYTES} bytes; this is no manifest")
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such manifest; `layerflow new train` and `layerflow new corpus` write one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """One YAML document as plain values. Raises ValueError: where, and what is wrong with it.

    Refused are tags of other languages' objects, keys that come twice, a value inside itself, and
    what exceeds the limits of this module; aliases count as what they stand for.
    """
    try:
        _check_size(yaml.parse(text, Loader=SafeLoader))
        return yaml.load(text, Loader=_Loader)
    except _WRONG as error:
        said = str(error) if isinstance(error, yaml.YAMLError) else f"a value is wrong: {error!r}"
        raise ValueError(on_screen([f"{where}: not YAML that can be read: {said}"])) from None


_WRONG = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError)
"""What PyYAML raises; other than YAMLError for such as ``!!int ""`` and ``!!bool maybe``."""


@dataclass(frozen=True)
class _Size:
    """Of a node with its aliases written out: values, characters, levels."""

    values: int
    text: int
    levels: int


@dataclass
class _Open:
    """A list or mapping whose end was not seen yet."""

    anchor: str | None
    is_mapping: bool
    values: int = 1
    text: int = 1
    levels: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)


def _check_size(events: Iterable[Any]) -> None:
    """Raises UnsafeYamlError for a document that is too large or deep when it is written out."""
    opened: list[_Open] = []
    sizes: dict[str, _Size] = {}
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(opened) > MAX_DEPTH:
                raise UnsafeYamlError(f"nested more than {MAX_DEPTH} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            done = opened.pop()
            anchor, size = done.anchor, _Size(done.values, done.text, done.levels)
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, _Size(1, 1 + len(event.value), 0)
        elif isinstance(event, yaml.AliasEvent):
            if any(one.anchor == event.anchor for one in opened):
                raise UnsafeYamlError(f"*{event.anchor} stands inside of what it names")
            anchor, size = None, sizes.get(str(event.anchor), _Size(0, 0, 0))
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if opened:
            _add(opened[-1], size, event, len(opened))


def _add(parent: _Open, size: _Size, event: Any, depth: int) -> None:
    is_key = parent.is_mapping and parent.children % 2 == 0
    if is_key and isinstance(event, yaml.ScalarEvent) and event.value != "<<":
        if event.value in parent.keys:
            line = event.start_mark.line + 1 if event.start_mark else "?"
            raise UnsafeYamlError(f"line {line}: the key {_SHORT.repr(event.value)} comes twice")
        parent.keys.add(event.value)
    parent.children += 1
    parent.values += size.values
    parent.text += size.text
    parent.levels = max(parent.levels, 1 + size.levels)
    if parent.values > MAX_VALUES or parent.text > MAX_TEXT:
        raise UnsafeYamlError(
            f"with its aliases written out more than {MAX_VALUES} values or {MAX_TEXT} characters"
        )
    if depth + size.levels > MAX_DEPTH:
        raise UnsafeYamlError(f"nested more than {MAX_DEPTH} levels deep")


class _Loader(SafeLoader):
    """The safe loader, without numbers of absurd length."""

    def _short_number(self, node: Any) -> Any:
        if len(str(node.value)) > MAX_NUMBER:
            mark = node.start_mark
            text = f"a number of more than {MAX_NUMBER} characters"
            raise yaml.constructor.ConstructorError(None, None, text, mark)
        kind = node.tag.rsplit(":", 1)[-1]
        return getattr(self, f"construct_yaml_{kind}")(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader._short_number)


# ---- errors that fit a screen -------------------------------------------------------------------

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """A value as an error shows it: one short line, whatever its size."""
    return _without_controls(_SHORT.repr(value))


def on_screen(lines: Iterable[str], width: int = SCREEN_WIDTH) -> str:
    """Lines of an error: the first ``SCREEN_LINES``, each cut in its middle to ``width``."""
    parts = [part for line in lines for part in line.split("\n")]
    kept = [_cut(_without_controls(_cut(part, width)), width) for part in parts[:SCREEN_LINES]]
    left = len(parts) - len(kept)
    return "\n".join([*kept, f"... and {left} more lines"] if left else kept)


def _cut(line: str, width: int) -> str:
    half = (width - 5) // 2
    return line if len(line) <= width else f"{line[:half]} ... {line[-half:]}"


def _without_controls(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
