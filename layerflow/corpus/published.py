"""A published corpus (Parquet, as on the Hub) read as a local one, from a folder or from the Hub.

``open_corpus`` takes what a user names: a corpus folder here or in an object store (``s3://``,
``gs://``), perhaps at a version (``CORPUS@v3``), a folder in the Hub's layout, or
``hf://datasets/NAMESPACE/NAME[@REVISION][/FOLDER or FOLDER/SPLIT-*.parquet]``. Only what is asked
for is read: columns without media cost no media bytes, over a network too.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from layerflow.clip import LAYERS, LayeredClip
from layerflow.corpus.columns import MEDIA
from layerflow.corpus.log import numbers, split_address
from layerflow.corpus.store import Store, in_object_store
from layerflow.corpus.table import SCHEMA, Chunk, Corpus, Table, decode_row
from layerflow.media.cells import MediaError

REMOTE = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<rest>.*))?"
)
DATA = "data"
MORE = "more-*"  # a folder holds at most 1,000 files: further ones lie in these
MAX_GROUP_BYTES = 4 << 30  # of a row group in memory; ours hold 32 MiB
UNSEEN = "there is no such repository, or the token may not see it (`hf auth login`)"


def local_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as ``datasets`` gives it -> a corpus row: each media cell is its bytes.

    Raises MediaError when a media cell holds a path only (of a repository that is not ours).
    """
    out = dict(row)
    for layer in MEDIA:
        cell = out.get(layer)
        if isinstance(cell, Mapping):
            if cell.get("bytes") is None:
                raise MediaError(f"{layer} of row {row.get('id')} holds no bytes")
            out[layer] = cell["bytes"]
    return out


def is_remote(where: str | Path) -> bool:
    """Whether a corpus lies on the Hub or in an object store."""
    return is_on_hub(where) or in_object_store(where)


def is_on_hub(where: str | Path) -> bool:
    return isinstance(where, str) and where.startswith("hf://")


def open_corpus(where: str | Path, version: int | None = None) -> Corpus | PublishedCorpus:
    """A corpus by what a user names it; see the module. A remote one is read in place.

    version: of a corpus with a log, by default the newest; ``CORPUS@v3`` names one, too.
    Raises ValueError when there is none, with what was looked for.
    """
    if is_on_hub(where):
        published = PublishedCorpus.remote(str(where))
    elif in_object_store(where) or not is_published(where):
        return Corpus.open(where, version)
    else:
        published = PublishedCorpus.open(where)
    if version is not None:
        raise ValueError(f"{where}: a published corpus has revisions, not versions")
    return published


def is_corpus(where: str | Path) -> bool:
    """Whether a folder or URL names a corpus that ``Corpus.open`` takes."""
    path, _ = split_address(where)
    if in_object_store(path):
        return bool(numbers(Store(path)))
    return "://" not in str(path) and (Path(path) / "state.json").is_file()


def is_published(path: Path | str) -> bool:
    """Whether a local path names the Parquet files of a published corpus."""
    if isinstance(path, str):
        if is_remote(path):
            return False
        path = Path(path)
    return not (path / "state.json").is_file() and bool(_parquet_files(path))


def fetched(where: str | Path) -> Path | str:
    """The same corpus, as an absolute path or URL that ``open_corpus`` takes.

    Files on the Hub are downloaded into its cache, once; later calls find them there, offline too.
    A corpus in an object store stays there. Raises ValueError when it is not there or the Hub
    cannot be reached.
    """
    if in_object_store(where):
        return where
    if not is_on_hub(where):
        return Path(where).resolve()
    import huggingface_hub

    repo, revision, pattern = _remote_parts(str(where))
    with _explained(str(where)):
        folder = huggingface_hub.snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=_patterns(pattern)
        )
    found = Path(folder) / pattern
    if not _parquet_files(found):
        raise ValueError(f"{where} holds no {pattern}")
    return found


def _remote_parts(url: str) -> tuple[str, str | None, str]:
    """Repository, revision and file pattern. Raises ValueError for another kind of URL."""
    match = REMOTE.fullmatch(url)
    if match is None or ".." in url:
        raise ValueError(f"{url!r} is no hf://datasets/NAMESPACE/NAME[@REVISION][/FOLDER]")
    rest = (match["rest"] or DATA).strip("/")
    revision = match["revision"].replace("%2F", "/") if match["revision"] else None
    return match["repo"], revision, rest if rest.endswith(".parquet") else f"{rest}/*.parquet"


def _patterns(pattern: str) -> list[str]:
    folder, _, name = pattern.rpartition("/")
    return [pattern, f"{folder}/{MORE}/{name}".lstrip("/")]


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Errors of the Hub's client as ValueError, without anything that might hold a token."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        text = f"{where}: is not in the cache, and the Hub is offline or out of reach"
        raise ValueError(text) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403, 404):
            raise ValueError(f"{where}: {UNSEEN}") from error
        raise ValueError(f"{where}: the Hub answered {status}") from error
    except FileNotFoundError as error:
        raise ValueError(f"{where}: {UNSEEN}") from error
    except ConnectionError as error:
        raise ValueError(f"{where}: the Hub cannot be reached") from error


def _parquet_files(path: Path) -> list[Path]:
    """The files that a folder, its ``data`` folder or a pattern name, in order."""
    if path.suffix == ".parquet":
        return _found(path.parent, path.name)
    if not path.is_dir():
        return []
    return _found(path / DATA, "*.parquet") or _found(path, "*.parquet")


def _found(folder: Path, pattern: str) -> list[Path]:
    """What ``pattern`` names in a folder and in those that hold more of it, by name."""
    return sorted([*folder.glob(pattern), *folder.glob(f"{MORE}/{pattern}")], key=lambda p: p.name)


@dataclass(frozen=True)
class _File:
    """One Parquet file: its name, what its identity is, and how to open it."""

    name: str
    stamp: tuple[Any, ...]
    open: Callable[[], pq.ParquetFile] = field(compare=False)


class PublishedCorpus:
    """The rows of Parquet files that ``layerflow publish`` made, in order, as corpus rows.

    Random access reads one row group of the wanted columns and keeps the last one. Not for use by
    several threads at a time.
    """

    def __init__(self, files: Sequence[_File], path: str | Path) -> None:
        self.path = path
        self._files = files
        self._opened: dict[int, pq.ParquetFile] = {}
        self._groups: list[tuple[int, int, int]] = []  # file, row group, first row
        self._last: tuple[Any, pa.RecordBatch] | None = None
        self._rows = 0
        self.schema = SCHEMA
        for number, file in enumerate(files):
            opened = self._file(number)
            schema = _checked(opened.schema_arrow, file.name)
            if number and schema.names != self.schema.names:
                raise ValueError(f"{file.name} has other columns than {files[0].name}")
            self.schema = schema
            for group in range(opened.num_row_groups):
                about = opened.metadata.row_group(group)
                if about.total_byte_size > MAX_GROUP_BYTES:
                    raise ValueError(f"{file.name}: row group {group} is larger than 4 GiB")
                self._groups.append((number, group, self._rows))
                self._rows += about.num_rows
        self._firsts = [first for _, _, first in self._groups]

    @classmethod
    def open(cls, folder: str | Path, split: str | None = None) -> PublishedCorpus:
        """Of a local folder, pattern or repository folder; of that the default configuration.

        Raises ValueError when it has none.
        """
        path = Path(folder)
        files = _parquet_files(path)
        if split is not None:
            files = [file for file in files if file.name.startswith(f"{split}-")]
        if not files:
            raise ValueError(f"{folder} holds no {DATA}/{split or ''}*.parquet")
        return cls([_local_file(file) for file in files], path)

    @classmethod
    def remote(cls, url: str) -> PublishedCorpus:
        """Of ``hf://datasets/...``, read in place. Raises ValueError when there is none."""
        from huggingface_hub import HfApi, HfFileSystem

        repo, revision, pattern = _remote_parts(url)
        with _explained(url):
            # at one commit: a branch may move on while its files are read
            commit = HfApi().repo_info(repo, repo_type="dataset", revision=revision).sha
            root = f"datasets/{repo}@{commit}"
            system = HfFileSystem()
            found = {n for p in _patterns(pattern) for n in system.glob(f"{root}/{p}")}
            names = sorted(found, key=lambda name: name.rpartition("/")[2])
            if not names:
                raise ValueError(f"{url} holds no {pattern}")
            return cls([_remote_file(system, name, len(root) + 1) for name in names], url)

    def _file(self, number: int) -> pq.ParquetFile:
        if number not in self._opened:
            if len(self._opened) > 64:  # of thousands, only some stay open
                self._opened.pop(next(iter(self._opened))).close()
            self._opened[number] = self._files[number].open()
        return self._opened[number]

    def __len__(self) -> int:
        return self._rows

    @property
    def info(self) -> dict[str, Any]:
        """How the corpus was made is in the card of its repository, not here."""
        return {}

    def identity(self) -> str:
        """Changes when the files do: names, sizes, and checksums or times."""
        return repr([(file.name, file.stamp) for file in self._files])

    @property
    def address(self) -> str:
        """What ``open_corpus`` takes."""
        return str(self.path)

    def rejected_table(self) -> Table | None:
        return None

    def rejected(self) -> list[dict[str, Any]]:
        return []

    @property
    def num_groups(self) -> int:
        """Row groups of all files."""
        return len(self._groups)

    def group(self, number: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """One row group as corpus rows; ``columns`` leaves the others unread."""
        return self._read(*self._groups[number][:2], columns)

    def chunks(self) -> Iterator[Chunk]:
        """Row groups in order, each a function from column names (None: all) to a record batch."""
        for file, group, _ in self._groups:
            yield partial(self._read, file, group)

    def _read(self, file: int, group: int, columns: Sequence[str] | None) -> pa.RecordBatch:
        names = list(columns) if columns is not None else self.schema.names
        key = (file, group, tuple(names))
        if self._last is None or self._last[0] != key:
            with _explained(str(self.path)) if is_on_hub(self.path) else nullcontext():
                table = self._file(file).read_row_group(group, columns=names)
            self._last = key, _corpus_batch(table, self.schema, names)
        return self._last[1]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Every row, as a corpus row; ``columns`` leaves the others unread."""
        for chunk in self.chunks():
            batch = chunk(columns)
            for index in range(batch.num_rows):
                yield batch.slice(index, 1).to_pylist()[0]

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """One row, as a corpus row."""
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        file, group, first = self._groups[bisect.bisect_right(self._firsts, index) - 1]
        batch = self._read(file, group, columns)
        return batch.slice(index - first, 1).to_pylist()[0]

    def clip(self, index: int) -> LayeredClip:
        return decode_row(self.row(index))

    def ids(self) -> list[str]:
        return [row["id"] for row in self.rows(["id"])]


def _local_file(path: Path) -> _File:
    about = path.stat()
    stamp = (about.st_size, about.st_mtime_ns)
    opened = partial(pq.ParquetFile, path, memory_map=True, page_checksum_verification=True)
    return _File(path.name, stamp, opened)


def _remote_file(system: Any, name: str, root: int) -> _File:
    about = system.info(name)
    lfs = about.get("lfs") or {}
    stamp = (about["size"], lfs.get("sha256") or about.get("blob_id"))

    def opened() -> pq.ParquetFile:
        # the columns asked for lie side by side: ranges are joined, nothing is read ahead
        return pq.ParquetFile(system.open(name, "rb", cache_type="none"), pre_buffer=True)

    return _File(name[root:], stamp, opened)


def _checked(found: pa.Schema, name: str) -> pa.Schema:
    """The schema of the rows as a corpus has them. Raises ValueError for another table."""
    missing = set(SCHEMA.names) - set(found.names)
    if missing:
        raise ValueError(f"{name} is of no published corpus: no column {sorted(missing)}")
    more = [
        pa.field(column.name, pa.large_binary()) if _is_media(column.type) else column
        for column in found
        if column.name not in SCHEMA.names
    ]
    return pa.schema([*SCHEMA, *(pa.field(column.name, column.type) for column in more)])


def _is_media(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _corpus_batch(table: pa.Table, schema: pa.Schema, names: Sequence[str]) -> pa.RecordBatch:
    """A row group with media cells as bytes and the corpus' own types.

    Raises MediaError for cells that hold a path only, ValueError for other types.
    """
    columns = []
    for name in names:
        column = table.column(name).combine_chunks()
        if _is_media(column.type):
            cells = pc.struct_field(column, "bytes")
            if name in LAYERS and cells.null_count:
                row = cells.is_null().to_pylist().index(True)
                raise MediaError(f"{name} of row {row} of a row group holds no bytes")
            column = cells
        try:
            columns.append(column.cast(schema.field(name).type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise ValueError(f"column {name} has another type: {error}") from error
    return pa.RecordBatch.from_arrays(columns, names=list(names))
