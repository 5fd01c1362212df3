"""Tables of layered stills (Parquet or Arrow, local or on the Hub), read by a column mapping.

A cell is a picture's bytes, the ``{bytes, path}`` struct of the ``Image`` feature, or the name of a
file below the table's folder. Remote tables are Parquet files that fsspec opens
(``hf://datasets/OWNER/NAME``); only the mapped columns of the wanted rows are fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from layerflow.clip import BLENDED, FOREGROUND, LAYERS, PROMPTED
from layerflow.locations import clean_uri, locate, root_of, without_secrets
from layerflow.media.cells import MediaError
from layerflow.media.isolate import isolated
from pipelines.inputs.importers import Importer, Listing
from pipelines.inputs.layouts import ROLE_OF, files_below
from pipelines.inputs.listing import STILL_SUFFIXES, VIDEO_SUFFIXES, find_remote, uri_of
from pipelines.inputs.metadata import folders_say
from pipelines.inputs.prompts import KEYS, Said, clean_text, merged, said_in
from pipelines.inputs.rows import rights_columns

SUFFIXES = frozenset({".parquet", ".arrow"})
TEXTS = tuple(f"{layer}_prompt" for layer in PROMPTED)
MAX_CELL_BYTES = 256 << 20


@dataclass(frozen=True)
class TablePart:
    """One file of a table: where, its name on record, its rows, its columns' names, and those of
    columns that state rights."""

    location: str
    uri: str
    rows: int
    columns: tuple[str, ...]
    rights: tuple[str, ...]

    @property
    def remote(self) -> bool:
        return "://" in self.location


class Dataset(Importer):
    """Parquet or Arrow tables, as on the Hub, by a column mapping."""

    name = "dataset"

    def recognises(self, root: Path) -> bool:
        media = files_below(root, STILL_SUFFIXES | VIDEO_SUFFIXES)
        return any(files_below(root, SUFFIXES)) and not any(media)

    def list(self, root: Path) -> Listing:
        return Listing(tables=list_parts(str(root)))


DATASET = Dataset()


def list_parts(item: str) -> list[TablePart]:
    """The table files of a folder or URL, in order. Raises ValueError when one cannot be read."""
    found: list[tuple[str, str]] = []
    if "://" in item:
        system, root, names = find_remote(item)
        places = [system.unstrip_protocol(n) for n in sorted(names) if n.endswith(".parquet")]
        found = [(place, uri_of(place, system.unstrip_protocol(root))) for place in places]
    else:
        found = [(str(path), rel.as_posix()) for path, rel in files_below(Path(item), SUFFIXES)]
    parts = []
    for location, uri in found:
        try:
            count = _counted if "://" in location else isolated(_counted)
            rows, columns, rights = count(location)
        except (OSError, pa.ArrowInvalid, ValueError) as error:
            text = f"{uri}: is no table that can be read: {error}"
            raise ValueError(without_secrets(text)) from error
        parts.append(TablePart(location, uri, rows, columns, rights))
    return parts


def _counted(location: str) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Rows, columns, and those of the columns that state rights."""
    if location.endswith(".parquet"):
        with _open(location) as source:
            file = pq.ParquetFile(source)
            rows, schema = file.metadata.num_rows, file.schema_arrow
    else:
        rows, schema = 0, pa.schema([])
        for batch in _arrow_batches(location):
            rows, schema = rows + batch.num_rows, batch.schema
    return rows, tuple(schema.names), tuple(sorted(rights_columns(schema)))


def _open(location: str) -> Any:
    if "://" not in location:
        return Path(location).open("rb")
    import fsspec

    return fsspec.open(location, "rb").open()


def _arrow_batches(location: str) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(location) as source:
        try:
            yield from pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_file(source)
            yield from (file.get_batch(i) for i in range(file.num_record_batches))


def mapping_of(columns: tuple[str, ...], said: Mapping[str, str]) -> dict[str, str]:
    """Layer or prompt -> column: what was said, else columns whose names are known words.

    Raises ValueError for a column that is not there, or when no picture column is found.
    """
    known = (*LAYERS, *TEXTS)
    for name, column in said.items():
        if name not in known:
            raise ValueError(f"columns: {name!r} is none of {', '.join(known)}")
        if column not in columns:
            raise ValueError(f"columns: there is no column {column!r}; there are {list(columns)}")
    found = dict(said)
    if not found:
        for column in columns:
            role = ROLE_OF.get(column.lower().removesuffix("_image"))
            if role in LAYERS and role not in found:
                found[role] = column
        for layer, names in KEYS.items():
            hit = next((n for n in names if n in columns and n not in found.values()), None)
            if hit is not None:
                found[f"{layer}_prompt"] = hit
    if not {FOREGROUND, BLENDED} & set(found):
        raise ValueError(
            f"no column of pictures is known among {list(columns)}; "
            "say which: --column foreground=NAME --column background=NAME"
        )
    return found


def read_cells(
    part: TablePart, mapping: Mapping[str, str], start: int, stop: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, layer or prompt -> cell) of rows ``start`` to ``stop``; columns of rights are
    there under their own names."""
    taken = set(mapping.values())
    own = [name for name in part.rights if name not in taken]
    names = [*mapping.items(), *((name, name) for name in own)]
    columns = sorted({column for _, column in names})
    if not part.remote:
        try:
            _check_range(part, columns, start, stop)
        except MediaError as error:
            rows = f"rows {start} to {stop - 1}"
            raise ValueError(f"{part.uri}: {rows} cannot be unpacked: {error}") from error
    for first, batch in _batches(part, columns, start, stop):
        for offset in range(batch.num_rows):
            if start <= first + offset < stop:
                row = batch.slice(offset, 1).to_pylist()[0]
                yield first + offset, {name: row[column] for name, column in names}


@isolated
def _check_range(part: TablePart, columns: list[str], start: int, stop: int) -> None:
    """Raises MediaError when rows do not unpack within a child's memory, or Arrow finds offsets,
    lengths or texts in them that are wrong."""
    for _, batch in _batches(part, columns, start, stop):
        batch.validate(full=True)
        if batch.nbytes > 8 * MAX_CELL_BYTES:
            raise MediaError(f"{batch.num_rows} rows take {batch.nbytes} bytes")


def _batches(
    part: TablePart, columns: list[str], start: int, stop: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches that overlap the range, each with the number of its first row."""
    first = 0
    if part.location.endswith(".parquet"):
        with _open(part.location) as source:
            file = pq.ParquetFile(source)
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if first < stop and first + rows > start:
                    at = first
                    for batch in file.iter_batches(8, row_groups=[group], columns=columns):
                        yield at, batch
                        at += batch.num_rows
                first += rows
        return
    for batch in _arrow_batches(part.location):
        if first < stop and first + batch.num_rows > start:
            yield first, batch.select(columns)
        first += batch.num_rows


def picture_bytes(cell: Any, part: TablePart) -> bytes:
    """The file that a cell holds or names. Raises MediaError."""
    name = cell
    if isinstance(cell, Mapping):
        if cell.get("bytes") is not None:
            cell = cell["bytes"]
        name = cell.get("path") if isinstance(cell, Mapping) else cell
    if isinstance(cell, bytes):
        if len(cell) > MAX_CELL_BYTES:
            raise MediaError(f"a cell of {len(cell)} bytes is over the limit")
        return cell
    if not isinstance(name, str) or not name:
        raise MediaError("a cell is empty, or holds no picture")
    if part.remote:
        raise MediaError(f"{name[:80]!r} is a path, not a picture")
    try:
        found = locate(name, Path(part.location).parent)
    except ValueError as error:
        raise MediaError(str(error)) from error
    path = Path(found)
    if "://" in found:
        raise MediaError(f"{clean_uri(found)[:80]!r} is an address, not a picture")
    if not path.is_file() or path.stat().st_size > MAX_CELL_BYTES:
        raise MediaError(f"{name[:80]!r} is no file, or over the limit")
    return path.read_bytes()


def write_cells(
    part: TablePart, cells: Mapping[str, Any], folder: Path
) -> tuple[tuple[str, Path], ...]:
    """The pictures of a row as files: (role, path). Raises MediaError."""
    files = []
    for role in LAYERS:
        if cells.get(role) is not None:
            path = folder / f"{role}.png"
            path.write_bytes(picture_bytes(cells[role], part))
            files.append((role, path))
    return tuple(sorted(files))


def said_by(part: TablePart, cells: Mapping[str, Any]) -> Said:
    """Prompts and rights of a row, and rights that the folders of its table state.

    Raises ValueError for rights that cannot be read.
    """
    texts = {k.removesuffix("_prompt"): v for k, v in cells.items() if k in TEXTS}
    prompts = {k: clean_text(v) for k, v in texts.items() if isinstance(v, str)}
    rest = {k: v for k, v in cells.items() if k not in (*LAYERS, *TEXTS)}
    location = Path(part.location)
    root = None if part.remote else root_of(location, part.uri)
    return merged(prompts, said_in(rest), *folders_say([location], root))
