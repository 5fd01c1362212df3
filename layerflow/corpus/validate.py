"""Care of a corpus: is it sound (``validate``), and what is in it (``stats``).

Both stream over the corpus; neither changes it. Rows are decoded in child processes when workers
are asked for, so that a decoder crash or hang is a problem of one row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerflow.corpus.columns import small_columns
from layerflow.corpus.log import REJECTED, named_files, numbers
from layerflow.corpus.published import PublishedCorpus, is_remote, open_corpus
from layerflow.corpus.row_cells import check_stored
from layerflow.corpus.row_check import Problem, RowReport, check_row
from layerflow.corpus.shards import table_files
from layerflow.corpus.stats import id_numbers, stats
from layerflow.corpus.store import Store, in_object_store
from layerflow.corpus.table import REJECTED_SCHEMA, SCHEMA, Corpus, Table, file_sha256
from layerflow.documents import read_json
from layerflow.media.cells import MediaError
from layerflow.media.sandbox import Contained, Work, contained_map

__all__ = ["check_folder", "check_rows", "stats", "validate"]

NO_INFO = "is missing, so how it was made is not known"
PARQUET_MEMORY = 6 << 30
FIX_FOLDER = "copy the corpus again from a sound copy, or run its job again with another --out"


def validate(corpus: Corpus | str | Path, *, workers: int = 0) -> list[Problem]:
    """Every problem of a corpus folder and its rows; an empty list means that it is sound.

    A published folder is a corpus too. workers: child processes that decode; 0 decodes in this
    process (for trusted corpora).
    """
    path = corpus.address if isinstance(corpus, Corpus) else corpus
    problems = check_folder(path)
    if any(problem.field != "corpus.json" for problem in problems):
        return problems
    for report in check_rows(open_corpus(path), workers=workers):
        problems.extend(report.problems)
    return problems


def check_folder(path: Path | str) -> list[Problem]:
    """Schema, sidecars, shards and their checksum, unique ids, the rejected table."""
    try:
        corpus = open_corpus(path)
        found = list(_stored(corpus))
        broken = isinstance(corpus, PublishedCorpus) and found  # not to be unpacked here
        return found if broken else [*found, *_ids(corpus)]
    except (ValueError, KeyError, OSError, pa.ArrowInvalid) as error:
        return [Problem(None, "state.json", str(error), FIX_FOLDER)]


def refuse_unsound(corpus: Corpus | PublishedCorpus, *, ids: bool = True) -> None:
    """What every job asks before it uses a corpus: raises ValueError with the first problem that
    ``validate`` finds in its files, except that nothing is recorded of how it was made.

    ids: whether an id may be there only once. Rows are checked by ``check_row``. A remote corpus is
    read in place, so of it nothing can be said here.
    """
    if is_remote(corpus.path):
        return
    for part in (_stored, _ids) if ids else (_stored,):
        for problem in part(corpus):
            if problem.what != NO_INFO:
                raise ValueError(f"{corpus.path} cannot be used: {problem}")


def refuse_unpackable(corpus: Corpus | PublishedCorpus) -> None:
    """Raises ValueError when the columns without media of a local published corpus do not unpack
    within a child's memory: for what only shows a corpus."""
    if isinstance(corpus, PublishedCorpus) and not is_remote(corpus.path):
        for problem in published_problems(Path(corpus.path), small_columns(corpus.schema)):
            raise ValueError(f"{corpus.path} cannot be used: {problem}")


def refuse_unsound_rows(corpus: Corpus | PublishedCorpus, *, workers: int) -> None:
    """Raises ValueError with the first row that ``validate`` refuses without decoding it."""
    for report in check_rows(corpus, workers=workers, decode=False):
        for problem in report.problems:
            raise ValueError(f"{corpus.path} cannot be used: {problem}")


def refuse_unsound_shards(corpus: Corpus, numbers: Iterable[int]) -> None:
    """As ``refuse_unsound`` of some shards of a local corpus; the others are not read."""
    for number in numbers:
        shard = corpus.shards[number]
        for _ in corpus.shard(number).batches():
            pass  # validated as it is read
        if shard.sha256 and stored_sha256(Path(corpus.path) / shard.file) != shard.sha256:
            text = f"the checksum of {shard.file} is not the one that the log says"
            raise ValueError(f"{corpus.path} cannot be used: {text}; {FIX_FOLDER}")


def _stored(corpus: Corpus | PublishedCorpus) -> Iterator[Problem]:
    if isinstance(corpus, PublishedCorpus):
        yield from published_problems(Path(corpus.path))
        return
    yield from (*_schema(corpus), *_info(corpus), *_shards(corpus))
    try:
        rejected = corpus.rejected_table()
        if rejected is None:
            if corpus.version is not None or not (Path(corpus.path) / REJECTED).exists():
                return
            rejected = Table(Path(corpus.path) / REJECTED)
        if missing := set(REJECTED_SCHEMA.names) - set(rejected.schema.names):
            text = f"there is no column {sorted(missing)}"
            yield Problem(None, "rejected", text, FIX_FOLDER)
        yield from (replace(found, field="rejected") for found in _shards(rejected))
    except (ValueError, KeyError) as error:
        yield Problem(None, "rejected", str(error), FIX_FOLDER)


def published_problems(path: Path, columns: Sequence[str] | None = None) -> Iterator[Problem]:
    """What is wrong with the Parquet files of a local published corpus: all of it is unpacked once,
    in a child process with a memory limit, and page checksums are compared where there are any.

    columns: only these. Files that were found sound are not read again by this process.
    """
    corpus = PublishedCorpus.open(path)
    state = corpus.identity(), None if columns is None else tuple(columns)
    if state in _sound:
        return
    child = Contained(group_reader, path, memory=PARQUET_MEMORY, writes=False)
    try:
        for group in range(corpus.num_groups):
            child.call(json.dumps([group, columns]).encode())
    except MediaError as error:
        yield Problem(None, "data", f"cannot be unpacked: {error}", FIX_FOLDER)
    else:
        _sound.add(state)
    finally:
        child.stop()


def group_reader(path: Path) -> Work:
    """The handler of ``published_problems``: the number of a row group, and columns."""
    corpus = PublishedCorpus.open(path)

    def read(request: bytes) -> bytes:
        group, columns = json.loads(request)
        corpus.group(group, columns).validate(full=True)
        return b""

    return read


def _schema(corpus: Corpus) -> Iterator[Problem]:
    for field in SCHEMA:
        found = corpus.schema.field(field.name).type
        if found != field.type and not _fewer_scores(found, field.type):
            text = f"the column is {_brief(found)}, not {_brief(field.type)}"
            yield Problem(None, field.name, text, "convert it with the version that made it")
    if is_remote(corpus.path):
        return
    try:
        info = Path(corpus.path) / "dataset_info.json"
        features = read_json(info, {"features": dict})["features"]
    except ValueError as error:
        yield Problem(None, "dataset_info.json", str(error), FIX_FOLDER)
        return
    if set(features) != set(corpus.schema.names):
        names = sorted(set(features) ^ set(corpus.schema.names))
        yield Problem(None, "dataset_info.json", f"and the shards differ in {names}", FIX_FOLDER)


def _fewer_scores(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a struct holds some of the wanted fields: a corpus made before others were added."""
    if not (pa.types.is_struct(found) and pa.types.is_struct(wanted)):
        return False
    return found.num_fields > 0 and all(field in list(wanted) for field in found)


def _brief(kind: pa.DataType) -> str:
    text = str(kind)
    return text if len(text) <= 80 else text[:77] + "..."


def _info(corpus: Corpus) -> Iterator[Problem]:
    again = "run the job that made it again: it resumes"
    try:
        info = corpus.info
    except ValueError as error:
        yield Problem(None, "corpus.json", f"cannot be read: {error}", again)
        return
    if not info:
        yield Problem(None, "corpus.json", NO_INFO, again)
    elif info.get("state") != "complete":
        yield Problem(None, "corpus.json", f"the state is {str(info.get('state'))[:40]!r}", again)
    elif info.get("rows") not in (None, len(corpus)):
        text = f"says {str(info['rows'])[:20]} rows, the shards hold {len(corpus)}"
        yield Problem(None, "corpus.json", text, FIX_FOLDER)


_hashed: dict[tuple[str, int, int], str] = {}
_sound: set[Any] = set()


def stored_sha256(path: Path) -> str:
    """sha256 of a shard, read once by this process while its size and time do not change."""
    about = path.stat()
    key = (str(path.resolve()), about.st_size, about.st_mtime_ns)
    if key not in _hashed:
        _hashed[key] = file_sha256(path)
    return _hashed[key]


def _shards(table: Table) -> Iterator[Problem]:
    """Every batch, the checksums of the shards, and files that no version names."""
    for _ in table.batches():
        pass  # validated as it is read
    local = table.store.local
    if any(shard.sha256 for shard in table.shards):
        yield from _logged(table)
    elif local is not None:
        digest = hashlib.sha256()
        for shard in table.shards:
            digest.update(stored_sha256(local / shard.file).encode())
        if read_json(local / "state.json").get("_fingerprint") != digest.hexdigest()[:16]:
            text = "the checksum of the shards is not the one that was written with them"
            yield Problem(None, "state.json", text, FIX_FOLDER)
    if local is not None:
        names = {shard.file for shard in table.shards}
        if isinstance(table, Corpus):
            names |= named_files(table.store)
        else:
            names |= named_files(Store(local.parent), REJECTED)
        if stray := sorted({p.name for p in local.glob("*.arrow")} - names):
            text = f"does not name the shards {stray[:3]}"
            yield Problem(None, "state.json", text, "remove them if they are left over")


def _logged(table: Table) -> Iterator[Problem]:
    """Shards against what the log says of them, and the sidecars of the newest version."""
    local = table.store.local
    for shard in table.shards:
        if local is not None:
            found = stored_sha256(local / shard.file)
        else:
            found = hashlib.sha256(table.store.read(shard.file)).hexdigest()
        if found != shard.sha256:
            text = f"the checksum of {shard.file} is not the one that the log says"
            yield Problem(None, "state.json", text, FIX_FOLDER)
    if local is None or not isinstance(table, Corpus) or table.version is None:
        return
    if table.version.number == numbers(table.store)[-1]:
        named = [path.name for path in table_files(local)]
        if named != [shard.file for shard in table.shards]:
            text = f"is not of version {table.version.number}, the newest"
            yield Problem(None, "state.json", text, "run `layerflow compact` on it")


def _ids(corpus: Corpus | PublishedCorpus) -> Iterator[Problem]:
    numbers = id_numbers(corpus)
    if len(np.unique(numbers)) == len(numbers):
        return
    if repeated := [id for id, count in Counter(corpus.ids()).items() if count > 1]:
        text = f"{len(repeated)} ids are there more than once, the first is {repeated[0]!r}"
        yield Problem(None, "id", text, "merge it into a new corpus with `layerflow merge`")


def check_rows(
    corpus: Corpus | PublishedCorpus,
    *,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    decode: bool = True,
) -> Iterator[RowReport]:
    """``check_row`` of every row, or of those given, in order; workers as of ``validate``.

    Rows of a corpus in an object store are checked one by one, without decoding them.
    """
    chosen = range(len(corpus)) if indices is None else indices
    if in_object_store(corpus.path):
        yield from (_checked_here(corpus.row(index), index) for index in chosen)
        return
    requests = [json.dumps([index, decode]).encode() for index in chosen]
    answers = contained_map(row_checker, Path(corpus.address), requests, workers)
    for index, answer in zip(chosen, answers, strict=True):
        if isinstance(answer, MediaError):
            yield RowReport((Problem(index, "media cells", str(answer)),))
        else:
            data = json.loads(answer)
            problems = tuple(Problem(**problem) for problem in data["problems"])
            yield RowReport(problems, data["kind"], data["encoded_rms"])


def _checked_here(row: Mapping[str, Any], index: int) -> RowReport:
    try:
        check_stored(row)
    except MediaError as error:
        return RowReport((Problem(index, "row", str(error)),), row["kind"])
    return RowReport((), row["kind"])


def row_checker(path: Path) -> Callable[[bytes], bytes]:
    """The handler of ``check_rows``: a row's index in, its report out, as JSON."""
    corpus = open_corpus(path)

    def check(request: bytes) -> bytes:
        index, decode = json.loads(request)
        return json.dumps(asdict(check_row(corpus.row(index), index, decode=decode))).encode()

    return check
