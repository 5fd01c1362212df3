"""What is said of a video or still: prompts and rights of tables, sidecars, other tools' JSON.

Something said is a mapping of some of ``foreground``, ``background``, ``blended`` (prompts) and
``licence``, ``attribution``; of tables also the subject that is chosen by hand. Keys of other
tools are known; whatever else a JSON file holds is no error.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from layerflow.clip import BACKGROUND, BLENDED, FOREGROUND, PROMPTED
from layerflow.corpus.columns import RIGHTS
from layerflow.locations import check_inside, escape_name, printable, spellings
from pipelines.inputs.chosen import BY_HAND, COLUMNS, chosen_in, more_chosen
from pipelines.inputs.rows import parse_json, read_rows, read_text, video_of
from pipelines.publish.licences import is_licence_column, joined, licence_in

TEMPLATE = {
    FOREGROUND: "the moving subject, cut out",
    BACKGROUND: "the scene without the subject",
    BLENDED: "the subject moving in the scene",
}
KEYS = {
    FOREGROUND: (
        *("foreground_prompt", "fg_prompt", "prompt_fg", "foreground_caption", "fg_caption"),
        FOREGROUND,
    ),
    BACKGROUND: (
        *("background_prompt", "bg_prompt", "prompt_bg", "background_caption", "bg_caption"),
        BACKGROUND,
    ),
    BLENDED: (
        *("blended_prompt", "bl_prompt", BLENDED, "full_prompt", "prompt", "full_caption"),
        *("video_caption", "caption", "text"),
    ),
}
PROMPT_COLUMNS = frozenset(name for names in KEYS.values() for name in names)
MAX_SIDECAR_BYTES = 1 << 20
MAX_PROMPT_CHARS = 2000
FILE_NAME = re.compile(r"\S+\.[A-Za-z0-9]{1,5}")
Said = dict[str, str]
Table = Mapping[str, Mapping[str, str]]


def is_known_column(name: str) -> bool:
    """Whether a column holds a prompt, a licence, an attribution or where the subject is."""
    return (
        name in PROMPT_COLUMNS
        or name in COLUMNS
        or name == "attribution"
        or is_licence_column(name)
    )


def prompts_in(entry: Any) -> Said:
    """The prompts that a JSON object or row holds, under any of the names in ``KEYS``, in any case.

    Of several captions of a layer the first counts; what is no text, or a file's name, is none.
    """
    if not isinstance(entry, Mapping):
        return {}
    found: Said = {}
    entry = _lower(entry)
    for layer, names in KEYS.items():
        texts = (clean_text(_first(entry.get(name))) for name in names)
        text = next((text for text in texts if text and not FILE_NAME.fullmatch(text)), None)
        if text:
            found[layer] = text
    return found


def said_in(entry: Any) -> Said:
    """Prompts and rights of a JSON value or row. A licence may stand at any depth.

    Raises ValueError for a licence that cannot be read.
    """
    return merged(prompts_in(entry), rights_in(entry))


def rights_in(entry: Any, *, deep: bool = True) -> Said:
    """Licence and attribution of a JSON value or row; deep: see ``licence_in``."""
    credit = _lower(entry).get("attribution") if isinstance(entry, Mapping) else None
    found = {"licence": licence_in(entry, deep=deep), "attribution": "; ".join(_credits(credit))}
    return {name: text for name, text in found.items() if text}


def merged(*said: Mapping[str, str]) -> Said:
    """What several sources say of one thing: the first prompt of a layer, and all rights."""
    found: Said = {}
    for one in said:
        found = {name: text for name, text in one.items() if text} | found
    held = {name: joined(one.get(name) for one in said) for name in RIGHTS}
    return found | {name: text for name, text in held.items() if text}


def _lower(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name).strip().lower(): value for name, value in reversed(list(entry.items()))}


def _first(value: Any) -> str:
    if isinstance(value, list | tuple):
        return next((item for item in value if isinstance(item, str) and item.strip()), "")
    return value if isinstance(value, str) else ""


def _credits(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts of an attribution: a text, a list or a struct."""
    if isinstance(value, str):
        if text := clean_text(value):
            yield text
    elif isinstance(value, Mapping | list | tuple) and depth < 4:
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _credits(item, depth + 1)


def clean_text(text: str) -> str:
    """One line of at most ``MAX_PROMPT_CHARS``, without marks and signs that are no text."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\ufeff\u2028\u2029]", " ", text[: 8 * MAX_PROMPT_CHARS])
    return printable(" ".join(plain.split())[:MAX_PROMPT_CHARS])


def sidecar_names(name: str) -> Iterator[str]:
    """The names that the sidecars of a file may have, in the order in which they count."""
    stem = PurePosixPath(name).stem
    yield from spellings(stem, [".json", ".info.json"])
    yield from spellings(name, [".json"])
    yield from spellings(stem, [".txt"])


def sidecar(path: Path, root: Path | None = None) -> Said:
    """What is said beside a file: by ``clip.json``, ``clip.info.json`` or ``clip.mp4.json``, then,
    where these are silent, by ``clip.txt``.

    root: the folder that a sidecar must lie in with its links followed; by default its own.
    Raises ValueError for one that leads out of it, is too large, no UTF-8, no valid JSON, or has a
    licence that cannot be read.
    """
    found: Said = {}
    for beside in map(path.with_name, sidecar_names(path.name)):
        if not beside.is_file():
            continue
        check_inside(beside, root or beside.parent)
        try:
            text = read_text(beside, MAX_SIDECAR_BYTES)
            if "\0" in text:
                raise ValueError("holds a NUL byte")
            if beside.suffix.lower() == ".txt":
                said = {BLENDED: clean_text(text)}
            else:
                said = said_in(_json(text)) if text.strip() else {}
        except (ValueError, OSError) as error:
            raise ValueError(f"{escape_name(beside.name)}: {error}") from error
        found = merged(found, said)
    return found


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error


def read_prompt_table(path: Path) -> dict[str, Said]:
    """A CSV, JSONL or Parquet table with a ``video`` (or ``file_name``) column and columns of
    prompts, or of where the subject is.

    Keys are the video column as written (a uri below the input folder, a file name or a stem).
    Raises ValueError that names the file and, where it can, the row.
    """
    content = read_rows(path, is_known_column)
    table: dict[str, Said] = {}
    for number, row in enumerate(content.rows, 1):
        key = _key(escape_name(video_of(row, f"{path}: row {number}")))
        try:
            said = said_in(row)
        except ValueError as error:
            raise ValueError(f"{path.name} row {number}: {error}") from error
        place, earlier = f"{path.name} row {number}", table.get(key, {})
        chosen = more_chosen(chosen_in(row, place), earlier, place)
        table[key] = merged(said, earlier) | chosen
    if table and not any(set(said) & {*PROMPTED, BY_HAND} for said in table.values()):
        raise ValueError(
            f"{path}: no row has a prompt in a column that is known; there are "
            f"{', '.join(content.columns)[:400]}; known are {', '.join(sorted(PROMPT_COLUMNS))}"
        )
    return table


def _key(name: str) -> str:
    """A name as tables are searched for it: blanks, signs between folders and composed letters may
    differ from the file's own."""
    plain = unicodedata.normalize("NFC", name.strip().replace("\\", "/"))
    return re.sub(r"^(?:\./)+", "", plain)


def entry_for(uri: str, table: Table | None, name: str = "") -> Mapping[str, str]:
    """The row of a table that names a source: by its uri, file name or stem, or by ``name``."""
    if not table:
        return {}
    path = PurePosixPath(uri)
    keys = map(_key, (uri, path.name, path.stem, name))
    return next((table[key] for key in keys if key in table), {})


def check_matches(table: Table, names: Mapping[str, str], path: str) -> str | None:
    """What to say of a table that names other files too. Raises ValueError for one of which no row
    names any of the inputs. names: of each input, by uri; see ``entry_for``."""
    uris = list(names)
    used = sum(bool(entry_for(uri, table, other)) for uri, other in names.items())
    name = Path(path).name
    if not used:
        theirs = next(iter(table), "nothing")
        raise ValueError(
            f"{name}: none of its {len(table)} rows names one of the {len(uris)} inputs: the first "
            f"row names {theirs[:80]!r}, the first input is {uris[0][:80]!r}"
        )
    unnamed = f"{name}: {len(uris) - used} of {len(uris)} inputs are in no row of it"
    return unnamed if used < len(uris) else None


def prompts_of(said: Mapping[str, str]) -> dict[str, str]:
    """The prompts of all layers: what is said, else the template's."""
    return {layer: said.get(layer) or text for layer, text in TEMPLATE.items()}
