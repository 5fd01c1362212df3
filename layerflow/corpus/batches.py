"""Random access to the record batches of an Arrow IPC stream, on this disk or by ranges.

A stream has no table of contents. Its messages are walked once, from head to head: each says how
long it is and how many rows it holds, and no body is read for that. A batch is then read alone,
and of a remote one only the ranges of the columns that are asked for.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from layerflow.corpus.shards import Message, check_types, named_errors, parse_message
from layerflow.corpus.store import Store

Read = Callable[[int, int], pa.Buffer]
"""Start and end of a range -> its bytes; fewer at the end of the file."""
HEAD_BYTES = 16 << 10  # of a remote message: most heads fit
GAP_BYTES = 64 << 10  # ranges that lie closer are read as one
SCHEMA, BATCH = 1, 3


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
