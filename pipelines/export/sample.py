"""One clip as files: its media as they are stored, and one JSON file with all else.

All files of a clip begin with its id: ``ID.json``, ``ID.alpha.mkv``, ``ID.objects.0.colour.mp4``.
So they are a sample of WebDataset's in a tar file, and stay together in a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from layerflow.clip import LAYERS
from layerflow.corpus.columns import COLUMNS, EXTENDED_SCHEMA, OBJECT, QUALITY, cells
from layerflow.documents import parse_json
from layerflow.locations import clean_uri
from layerflow.media.opening import PNG_MAGIC

FORMAT = 1
MAX_SAMPLE_BYTES = 1 << 30  # of all files of a clip
MAX_JSON_BYTES = 16 << 20
MAX_OBJECTS = 64
MATROSKA = b"\x1aE\xdf\xa3"
CLIP_ID = re.compile(r"[0-9a-f]{16}")
_PLAIN = [column.name for column in COLUMNS if not column.media and column.name != "objects"]
_MEDIA = [column.name for column in COLUMNS if column.media]
_OBJECT_CELLS = [field.name for field in OBJECT if pa.types.is_large_binary(field.type)]
_CELLS = "|".join([*_MEDIA, rf"objects\.\d{{1,3}}\.(?:{'|'.join(_OBJECT_CELLS)})"])
NAME = re.compile(rf"(?P<id>[0-9a-f]{{16}})\.(?:(?P<cell>{_CELLS})\.(?:png|mkv|mp4)|json)")
"""The name of a file of a clip; ``cell`` is None for its JSON."""


def files_of(row: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file of a corpus row, its JSON first.

    Raises ValueError when they are larger together than a reader takes.
    """
    media = [(name, row[name] or b"") for name in LAYERS]
    files = [(f"{row['id']}.json", json_of(row))]
    for name, data in [*media, *cells(row)]:
        files.append((f"{row['id']}.{name}.{_suffix(data)}", data))
    if (size := sum(len(data) for _, data in files)) > MAX_SAMPLE_BYTES:
        raise ValueError(f"the clip {row['id']} holds {size} bytes; at most 1 GiB can be exported")
    yield from files


def _suffix(data: bytes) -> str:
    if data[:8] == PNG_MAGIC:
        return "png"
    return "mkv" if data[:4] == MATROSKA else "mp4"


def json_of(row: Mapping[str, Any]) -> bytes:
    """All of a row that is no media; scores that nobody knows are left out."""
    told = {name: row[name] for name in _PLAIN if row.get(name) is not None}
    told["origin"] = cleaned(row["origin"])
    told["quality"] = {name: v for name, v in row["quality"].items() if v is not None}
    if row.get("objects") is not None:
        told["objects"] = [
            {k: v for k, v in item.items() if k not in _OBJECT_CELLS}
            | {"origin": cleaned(item["origin"])}
            for item in row["objects"]
        ]
    return json.dumps({"format": FORMAT, **told}, indent=1, allow_nan=False).encode() + b"\n"


def cleaned(origin: Mapping[str, Any]) -> dict[str, Any]:
    """An origin whose addresses hold no credentials and signatures."""
    parents = origin["parents"]
    return {
        **origin,
        "uri": clean_uri(origin["uri"] or ""),
        "parents": None if parents is None else [clean_uri(parent or "") for parent in parents],
    }


def row_of(id: str, files: Mapping[str | None, bytes]) -> dict[str, Any]:
    """The corpus row of a clip's files, by the names of their cells, the JSON by None.

    Types are checked here, values and media by ``check_stored``. Raises ValueError for files that
    are missing or belong to nothing, and for JSON that says something else than a row.
    """
    if None not in files:
        raise ValueError(f"{id}.json is missing")
    told = parse_json(files[None], f"{id}.json")
    if told.pop("format", None) != FORMAT or told.get("id") != id:
        raise ValueError(f"{id}.json is not of format {FORMAT}, or of another clip")
    if unknown := set(told) - {*_PLAIN, "objects"}:
        raise ValueError(f"{id}.json: nobody knows {sorted(unknown)[0][:40]!r}")
    used: set[str | None] = {None, *_MEDIA}
    content = {**told, **{name: files.get(name) for name in _MEDIA}}
    if told.get("objects") is not None:
        content["objects"] = [_object(k, item, files, used) for k, item in _listed(told["objects"])]
    if left := set(files) - used:
        raise ValueError(f"{min(map(str, left))} belongs to no object of {id}.json")
    if not isinstance(told.get("quality"), dict) or set(told["quality"]) - {
        f.name for f in QUALITY
    }:
        raise ValueError(f"{id}.json: its quality is no mapping of known scores")
    try:
        row = pa.RecordBatch.from_pylist([content], schema=EXTENDED_SCHEMA).to_pylist()[0]
        found = [row, *(row["objects"] or ())]
        for holder in found:
            holder["origin"] = cleaned(holder["origin"])
    except (ValueError, TypeError, OverflowError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{id}.json holds what no row holds: {str(error)[:200]}") from error
    return dict(row)


def _listed(objects: Any) -> list[tuple[int, dict[str, Any]]]:
    if not isinstance(objects, list) or len(objects) > MAX_OBJECTS:
        raise ValueError(f"its objects are no list of at most {MAX_OBJECTS}")
    if not all(isinstance(item, dict) and item.get("order") == k for k, item in enumerate(objects)):
        raise ValueError("its objects are not in order")
    return list(enumerate(objects))


def _object(
    place: int, item: dict[str, Any], files: Mapping[str | None, bytes], used: set[str | None]
) -> dict[str, Any]:
    names = {cell: f"objects.{place}.{cell}" for cell in _OBJECT_CELLS}
    used |= set(names.values())
    return {**item, **{cell: files.get(name) for cell, name in names.items()}}
