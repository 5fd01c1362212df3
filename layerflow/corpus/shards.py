"""Arrow IPC streams of strangers: read memory-mapped, and checked before a value is used.

The jobs write plain record batches of plain types. What else Arrow can hold is refused by its
metadata, before a byte of it is unpacked: compressed buffers and dictionaries (which say how much
memory they take), views and run-length types (whose values repeat for free), extension types.

A stream has no table of contents. ``ShardReader`` walks its messages once, from head to head: each
says how long it is and how many rows it holds, and no body is read for that. A batch is then read
alone, and of a remote one only the ranges of the columns that are asked for.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import pyarrow as pa

from layerflow.corpus.store import Store
from layerflow.documents import read_json

HEAD_BYTES = 16 << 10  # of a remote message: most heads fit
GAP_BYTES = 64 << 10  # ranges that lie closer are read as one
MAX_BODY = 4 << 30  # of a record batch; ours hold four rows
SCHEMA, BATCH = 1, 3
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
    _check_schema(schema.serialize().to_pybytes())


@lru_cache(maxsize=64)  # the files of a job have one, and there are a million of them
def _check_schema(serialized: bytes) -> None:
    for field in pa.ipc.read_schema(pa.py_buffer(serialized)):
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
    kind, rows, compressed = struct.unpack_from("<B", data, kind)[0], 0, False
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


# ---- random access ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """Where a batch lies: its head, its body, its rows, and the number of its first row."""

    head: int
    body: int
    end: int
    rows: int
    first: int


class ShardReader:
    """The batches of one shard of a corpus folder. Errors as of ``read_shard``."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self._where = store.location(name)
        self._heads: dict[int, pa.Buffer] = {}

    @classmethod
    def of(
        cls, store: Store, name: str, schema: pa.Schema, entries: Sequence[Entry]
    ) -> ShardReader:
        """A reader of whole batches that is told where they lie, and walks nothing."""
        reader = cls(store, name)
        reader.__dict__["_walked"] = schema, list(entries)
        return reader

    @cached_property
    def _mapped(self) -> pa.Buffer:
        with pa.memory_map(self._where) as source:
            return source.read_buffer()

    def _read(self, start: int, end: int) -> pa.Buffer:
        if self.store.local is not None:
            whole = self._mapped
            return whole.slice(start, max(0, min(end, whole.size) - start))
        return pa.py_buffer(self.store.read(self.name, start, end))

    @cached_property
    def _walked(self) -> tuple[pa.Schema, list[Entry]]:
        """The columns and where every batch lies. Raises as ``named_errors`` says."""
        schema: pa.Schema | None = None
        entries: list[Entry] = []
        place = rows = 0
        with named_errors(self._where):
            while (message := self._message(place)) is not None:
                body = place + 8 + message.head_bytes
                end = body + message.body_bytes
                if message.kind != (SCHEMA if schema is None else BATCH):
                    raise pa.ArrowInvalid(f"it holds a message of type {message.kind}")
                if message.body_bytes > MAX_BODY:
                    raise pa.ArrowInvalid("a record batch is larger than 4 GiB")
                if schema is None:
                    schema = pa.ipc.read_schema(self._read(place, end))
                    check_types(schema)
                else:
                    if message.is_compressed:
                        raise pa.ArrowInvalid("its record batches are compressed")
                    entries.append(Entry(place, body, end, message.rows, rows))
                    rows += message.rows
                place = end
            if schema is None:
                raise pa.ArrowInvalid("it is empty")
        return schema, entries

    def _message(self, place: int) -> Message | None:
        """What the head of a message says; None at the end of the stream."""
        head = self._read(place, place + HEAD_BYTES)
        if head.size == 0:
            return None
        if head.size < 8:
            raise pa.ArrowInvalid("it is cut off")
        mark, size = struct.unpack_from("<Ii", head)
        if mark != 0xFFFFFFFF or size < 0:
            raise pa.ArrowInvalid("it is no Arrow stream")
        if size == 0:
            return None
        if head.size < 8 + size:
            head = self._read(place, place + 8 + size)
            if head.size < 8 + size:
                raise pa.ArrowInvalid("it is cut off")
        if self.store.local is None:
            self._heads[place] = head.slice(0, 8 + size)
        return parse_message(memoryview(head)[8 : 8 + size], size)

    @property
    def schema(self) -> pa.Schema:
        return self._walked[0]

    @property
    def rows(self) -> int:
        entries = self._walked[1]
        return entries[-1].first + entries[-1].rows if entries else 0

    @property
    def entries(self) -> list[Entry]:
        return self._walked[1]

    @property
    def count(self) -> int:
        """The number of batches."""
        return len(self._walked[1])

    def place(self, row: int) -> tuple[int, int]:
        """The number of the batch that holds a row, and the row's place in it."""
        number = bisect.bisect_right(self._firsts, row) - 1
        return number, row - self._firsts[number]

    @cached_property
    def _firsts(self) -> list[int]:
        return [entry.first for entry in self._walked[1]]

    def batch(self, number: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """One batch, validated in full: offsets, lengths, validity and the encoding of texts.

        columns: only these; of a remote shard the others are not fetched.
        """
        schema, entries = self._walked
        entry = entries[number]
        with named_errors(self._where):
            if self.store.local is not None or columns is None:
                data = self._read(entry.head, entry.end)
                if data.size < entry.end - entry.head:
                    raise pa.ArrowInvalid("it is cut off")
                size = entry.body - entry.head - 8
                if parse_message(memoryview(data)[8 : 8 + size], size).is_compressed:
                    raise pa.ArrowInvalid("its record batches are compressed")
            else:
                data = self._sparse(entry, schema, columns)
            batch = pa.ipc.read_record_batch(data, schema)
            batch = batch if columns is None else batch.select(list(columns))
            if batch.num_rows != entry.rows:
                raise pa.ArrowInvalid("a record batch holds another number of rows than it says")
            batch.validate(full=True)
            return batch

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All batches in order."""
        return (self.batch(number, columns) for number in range(self.count))

    def _sparse(self, entry: Entry, schema: pa.Schema, columns: Sequence[str]) -> pa.Buffer:
        """A message whose body holds the buffers of some columns; zeros stand for the others."""
        head = self._heads[entry.head]
        buffers = parse_message(memoryview(head)[8:], head.size - 8).buffers()
        wanted = []
        at = 0
        for field in schema:
            count = _buffers_of(field.type)
            if field.name in columns:
                wanted += [b for b in buffers[at : at + count] if b[1]]
            at += count
        if at != len(buffers):
            raise pa.ArrowInvalid("a record batch has another number of buffers than its columns")
        size = entry.end - entry.body
        data = bytearray(head.size + size)
        data[: head.size] = memoryview(head)
        for start, length in _joined(wanted, size):
            part = self._read(entry.body + start, entry.body + start + length)
            if part.size < length:
                raise pa.ArrowInvalid("it is cut off")
            data[head.size + start : head.size + start + length] = memoryview(part)
        return pa.py_buffer(data)


def _buffers_of(kind: pa.DataType) -> int:
    """Buffers of a column of a type that ``check_types`` lets pass, in a record batch."""
    if pa.types.is_struct(kind):
        return 1 + sum(_buffers_of(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return 2 + _buffers_of(kind.value_type)
    return 2 if pa.types.is_boolean(kind) or pa.types.is_primitive(kind) else 3


def _joined(ranges: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Ranges (start, length) in order, those with small gaps as one. ArrowInvalid outside."""
    found: list[tuple[int, int]] = []
    for start, length in sorted(ranges):
        if start < 0 or length < 0 or start + length > size:
            raise pa.ArrowInvalid("a buffer of a record batch lies outside of it")
        if found and start - sum(found[-1]) <= GAP_BYTES:
            first = found[-1][0]
            found[-1] = (first, max(sum(found[-1]), start + length) - first)
        else:
            found.append((start, length))
    return found
