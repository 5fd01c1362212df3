"""Arrow IPC streams of strangers: read memory-mapped, and checked before a value is used.

The jobs write plain record batches of plain types. What else Arrow can hold is refused by its
metadata, before a byte of it is unpacked: compressed buffers and dictionaries (which say how much
memory they take), views and run-length types (whose values repeat for free), extension types.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from layerflow.documents import read_json

EXTENSION = b"ARROW:extension:name"
Batches = Iterator[pa.RecordBatch]


def table_files(folder: Path) -> list[Path]:
    """The shards that ``state.json`` names, in order, all of them in the folder itself.

    Raises ValueError when there is no table, or ``state.json`` is none.
    """
    state = folder / "state.json"
    if not state.is_file():
        raise ValueError(f"{folder} holds no corpus (no state.json)")
    try:
        entries = read_json(state, {"_data_files": list})["_data_files"]
        names = [Path(entry["filename"]).name for entry in entries]  # never paths out of here
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{state} cannot be read: {repr(error)[:400]}") from error
    if not names or not all(names):
        raise ValueError(f"{state} cannot be read: it names no shard")
    return [folder / name for name in names]


def read_shard(path: Path, columns: Sequence[str] | None = None) -> Batches:
    """The record batches of one stream, memory-mapped: columns that are not touched are not read.

    columns: only these. Every batch is validated in full: offsets, lengths, validity and the
    encoding of texts. Raises ValueError that names the file when it is damaged, cut off, gone, or
    of another make.
    """
    with named_errors(path), _opened(path) as reader:
        for batch in reader:
            batch.validate(full=True)
            yield batch if columns is None else batch.select(list(columns))


def read_schema(path: Path) -> pa.Schema:
    """The columns of one stream; errors as of ``read_shard``."""
    with named_errors(path), _opened(path) as reader:
        return reader.schema


@contextmanager
def _opened(path: Path) -> Iterator[pa.RecordBatchStreamReader]:
    with pa.memory_map(str(path)) as source:
        _check_messages(source)
        source.seek(0)
        with pa.ipc.open_stream(source) as reader:
            check_types(reader.schema)
            yield reader


@contextmanager
def named_errors(path: Path | str) -> Iterator[None]:
    """Errors of a damaged file as ValueError with its name."""
    try:
        yield
    except (OSError, ValueError, MemoryError, RecursionError, struct.error, pa.ArrowException) as e:
        raise ValueError(f"{path} cannot be read: {str(e)[:400]}") from e


def check_types(schema: pa.Schema) -> None:
    """Raises ArrowInvalid when a column is of a type that no corpus has."""
    for field in schema:
        _check_field(field, field.name)


def _check_field(field: pa.Field, name: str) -> None:
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType) or EXTENSION in (field.metadata or {}):
        raise pa.ArrowInvalid(f"the column {name[:80]!r} is of an extension type")
    if pa.types.is_struct(kind):
        for part in kind:
            _check_field(part, f"{name}.{part.name}")
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        _check_field(kind.value_field, name)
    elif not _is_plain(kind):
        raise pa.ArrowInvalid(f"the column {name[:80]!r} is {str(kind)[:80]}, which no corpus has")


def _is_plain(kind: pa.DataType) -> bool:
    t = pa.types
    texts = (t.is_string, t.is_large_string, t.is_binary, t.is_large_binary)
    return t.is_boolean(kind) or t.is_integer(kind) or t.is_floating(kind) or any(
        known(kind) for known in texts
    )  # fmt: skip


def _check_messages(source: pa.NativeFile) -> None:
    """Only a schema and record batches that are not compressed."""
    first = True
    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type != ("schema" if first else "record batch"):
            raise pa.ArrowInvalid(f"it holds a message of type {message.type}")
        data = message.metadata.to_pybytes()
        if not first and parse_message(data, len(data)).is_compressed:
            raise pa.ArrowInvalid("its record batches are compressed")
        first = False


@dataclass(frozen=True)
class Message:
    """What the head of a message says. kind: 1 a schema, 3 a record batch; rows: of a batch."""

    data: bytes | memoryview
    head_bytes: int
    body_bytes: int
    kind: int
    rows: int
    is_compressed: bool
    header: int

    def buffers(self) -> list[tuple[int, int]]:
        """Of a record batch: start and length of every buffer in its body."""
        place = _field(self.data, self.header, 2)
        if place is None:
            return []
        vector = place + struct.unpack_from("<I", self.data, place)[0]
        count = struct.unpack_from("<I", self.data, vector)[0]
        flat = struct.unpack_from(f"<{2 * count}q", self.data, vector + 4)
        return list(zip(flat[::2], flat[1::2], strict=True))


def parse_message(data: bytes | memoryview, head_bytes: int) -> Message:
    """The flatbuffer of a message's head. Raises ArrowInvalid or struct.error when it is none."""
    root = struct.unpack_from("<I", data, 0)[0]
    kind, place, size = (_field(data, root, number) for number in (1, 2, 3))
    if place is None or kind is None:  # the header, whose type the message says
        raise pa.ArrowInvalid("a message has no header")
    header = place + struct.unpack_from("<I", data, place)[0]
    body = 0 if size is None else struct.unpack_from("<q", data, size)[0]
    kind, rows, compressed = data[kind], 0, False
    if kind == 3:
        length = _field(data, header, 0)
        rows = 0 if length is None else struct.unpack_from("<q", data, length)[0]
        compressed = _field(data, header, 3) is not None
    if body < 0 or rows < 0:
        raise pa.ArrowInvalid("a message's metadata is damaged")
    return Message(data, head_bytes, body, kind, rows, compressed, header)


def _field(data: bytes | memoryview, table: int, number: int) -> int | None:
    """Where a flatbuffer table holds its field ``number``; None when it does not."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise pa.ArrowInvalid("a message's metadata is damaged")
    slot = 4 + 2 * number
    if slot >= struct.unpack_from("<H", data, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", data, vtable + slot)[0]
    return table + offset if offset else None
