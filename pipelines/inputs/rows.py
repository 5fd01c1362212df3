"""Tables that people write (CSV, JSONL, Parquet): bounded, strict, errors name the row."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from layerflow.media.isolate import isolated
from layerflow.regular import read_regular
from pipelines.publish.licences import is_licence_column

TABLE_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})
MAX_TABLE_BYTES = 256 << 20
MAX_ROWS = 4_000_000
MAX_CELL_CHARS = 16 << 20
VIDEO_COLUMNS = ("video", "file_name")
DELIMITERS = ",;\t|"
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32 (little-endian)",
    b"\x00\x00\xfe\xff": "UTF-32 (big-endian)",
    b"\xff\xfe": "UTF-16 (little-endian)",
    b"\xfe\xff": "UTF-16 (big-endian)",
}


@dataclass(frozen=True)
class Rows:
    """A table: its columns' names (stripped, lower case) and its rows, without empty ones."""

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]


def read_text(path: Path, limit: int) -> str:
    """A text file, UTF-8 with or without a byte order mark, line ends as they are.

    Raises ValueError for over ``limit`` bytes and for another encoding, which it names, OSError
    for a file that cannot be read.
    """
    data = read_regular(path, limit)
    if len(data) > limit:
        raise ValueError(f"is over the limit of {limit} bytes")
    packed = next((name for magic, name in PACKED.items() if data.startswith(magic)), None)
    if packed:
        raise ValueError(f"is compressed ({packed}): decompress it first")
    if encoding := _other_encoding(data):
        raise ValueError(f"is {encoding}, not UTF-8: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"is not UTF-8 (byte {data[error.start]:#04x} in line {line}; "
            "Windows-1252 or Latin-1?): save it as UTF-8"
        ) from error


def _other_encoding(data: bytes) -> str | None:
    for mark, name in MARKS.items():
        if data.startswith(mark):
            return name
    head = data[:4096]
    if not head or head.count(0) * 3 < len(head):
        return None
    little = head[1::2].count(0) >= head[::2].count(0)
    return f"UTF-16 ({'little' if little else 'big'}-endian)"


def parse_json(text: str) -> Any:
    """JSON; a licence that one object gives twice is a list. Raises ValueError for what is none."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # the last one would hide what the others forbid
        for name in filter(is_licence_column, found):
            found[name] = [value for key, value in pairs if key == name]
    return found


def read_rows(path: Path, wanted: Callable[[str], bool]) -> Rows:
    """The rows of a CSV, JSONL or Parquet table.

    wanted: which columns are of use; others of a Parquet file are not read. Raises ValueError that
    names the file, the row (of data, from 1) and what is wrong with it.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise ValueError(f"{path}: a table is .csv, .jsonl or .parquet, not compressed")
    try:
        if suffix == ".parquet":
            return _parquet(path, wanted)
        return _csv(path) if suffix == ".csv" else _jsonl(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _normal(names: Iterable[Any]) -> list[str]:
    found = [str(name or "").strip().lower() for name in names]
    twice = {name for name in found if name and found.count(name) > 1}
    if twice:
        raise ValueError(f"the column {min(twice)[:80]!r} is there twice")
    return found


def _csv(path: Path) -> Rows:
    text = read_text(path, MAX_TABLE_BYTES)
    delimiter = ""
    first = text[: 1 << 16].partition("\n")[0].strip("\r")
    if len(first) == 5 and first.lower().startswith("sep="):  # Excel's own first line
        delimiter, text = first[4], text.partition("\n")[2]
    delimiter = delimiter or _delimiter(text)
    before = csv.field_size_limit(MAX_CELL_CHARS)
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return _csv_rows(lines)
    finally:
        csv.field_size_limit(before)


def _delimiter(text: str) -> str:
    """The sign that parts the header into known columns; a comma when none does."""
    header = text[: 1 << 16].lstrip("\r\n").replace("\r", "\n").partition("\n")[0]
    for sign in DELIMITERS:
        names = {name.strip(' "').lower() for name in header.split(sign)}
        if names & set(VIDEO_COLUMNS):
            return sign
    return DELIMITERS[0]


def _csv_rows(lines: Any) -> Rows:
    columns: list[str] = []
    rows: list[dict[str, Any]] = []
    try:
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            number = len(rows) + 1
            place = f"row {number} (line {lines.line_num})"
            if not columns:
                columns = _normal(cells)
                continue
            if len(cells) > len(columns):
                raise ValueError(
                    f"{place} has {len(cells)} cells for {len(columns)} columns: "
                    "put a text with a comma in quotes"
                )
            if any("\0" in cell for cell in cells):
                raise ValueError(f"{place} holds a NUL byte")
            rows.append({n: c for n, c in zip(columns, cells, strict=False) if n and c.strip()})
            _check_count(rows)
    except csv.Error as error:
        place = f"row {len(rows) + 1} (line {lines.line_num})" if columns else "the header"
        raise ValueError(f"{place}: {error}") from error
    return Rows(tuple(columns), rows)


def _jsonl(path: Path) -> Rows:
    rows: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    # Lines end at \n alone: U+2028, U+0085 and the like may stand inside a JSON text.
    for line, text in enumerate(read_text(path, MAX_TABLE_BYTES).split("\n"), 1):
        if not text.strip():
            continue
        place = f"row {len(rows) + 1} (line {line})"
        try:
            content = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{place} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{place} is no JSON object")
        names = _normal(content)
        columns.update(dict.fromkeys(names))
        rows.append(dict(zip(names, content.values(), strict=True)))
        _check_count(rows)
    return Rows(tuple(columns), rows)


def rights_columns(schema: pa.Schema) -> set[str]:
    """The columns that are a licence or an attribution, or structs or lists that hold a licence."""

    def holds(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(is_licence_column(f.name) or holds(f.type) for f in kind)
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        return any(is_list(kind) for is_list in lists) and holds(kind.value_type)

    return {
        field.name
        for field in schema
        if is_licence_column(field.name)
        or field.name.strip().lower() == "attribution"
        or holds(field.type)
    }


def _parquet(path: Path, wanted: Callable[[str], bool]) -> Rows:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = list(file.schema_arrow.names)
    columns = dict(zip(names, _normal(names), strict=True))
    known = {*VIDEO_COLUMNS, *filter(wanted, columns.values())}
    rights = rights_columns(file.schema_arrow)
    used = [name for name, plain in columns.items() if plain in known or name in rights]
    groups = map(file.metadata.row_group, range(file.num_row_groups))
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    taken = (chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in used)
    size = sum(chunk.total_uncompressed_size for chunk in taken)
    if size > MAX_TABLE_BYTES or file.metadata.num_rows > MAX_ROWS:
        raise ValueError(f"is over the limit of {MAX_TABLE_BYTES} bytes or {MAX_ROWS} rows")
    _check_unpacked(path, used)
    rows: list[dict[str, Any]] = []
    for batch in file.iter_batches(64, columns=used):
        rows += [{columns[name]: cell for name, cell in row.items()} for row in batch.to_pylist()]
    return Rows(tuple(columns.values()), rows)


@isolated
def _check_unpacked(path: Path, columns: list[str]) -> None:
    """Raises MediaError when the cells are over the limit: a file says of packed ones what it
    likes, and what repeats takes no bytes in it."""
    import pyarrow.parquet as pq

    held = 0
    for batch in pq.ParquetFile(path).iter_batches(64, columns=columns):
        batch.validate(full=True)
        held += batch.nbytes + sum(sys.getsizeof(value) for value in _values(batch.to_pylist()))
        if held > 4 * MAX_TABLE_BYTES:
            raise ValueError(f"its cells are over the limit of {MAX_TABLE_BYTES} bytes")


def _values(cell: Any) -> Iterator[Any]:
    """All texts, bytes and numbers in lists and mappings."""
    inner = cell.values() if isinstance(cell, dict) else cell if isinstance(cell, list) else None
    if inner is None:
        yield cell
    else:
        for value in inner:
            yield from _values(value)


def _check_count(rows: list[dict[str, Any]]) -> None:
    if len(rows) > MAX_ROWS:
        raise ValueError(f"holds over {MAX_ROWS} rows")


def video_of(row: Mapping[str, Any], place: str) -> str:
    """The video that a row names. Raises ValueError when it names none."""
    video = next((row[name] for name in VIDEO_COLUMNS if row.get(name) is not None), None)
    if not isinstance(video, str) or not video.strip():
        raise ValueError(f"{place} has no video column: {' or '.join(VIDEO_COLUMNS)}")
    return video
