"""Care of a corpus: is it sound (``validate``), and what is in it (``stats``).

Both stream over the corpus; neither changes it. Rows are decoded in child processes when workers
are asked for, so that a decoder crash or hang is a problem of one row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from layerflow.check import Problem, RowReport, check_row
from layerflow.contained import contained_map
from layerflow.corpus import REJECTED_SCHEMA, SCHEMA, Corpus, Table, file_sha256
from layerflow.media import MediaError
from layerflow.published import PublishedCorpus, open_corpus
from layerflow.stats import stats

__all__ = ["check_folder", "check_rows", "stats", "validate"]

FIX_FOLDER = "copy the corpus again from a sound copy, or run its job again with another --out"


def validate(corpus: Corpus | str | Path, *, workers: int = 0) -> list[Problem]:
    """Every problem of a corpus folder and its rows; an empty list means that it is sound.

    A published folder is a corpus too. workers: child processes that decode; 0 decodes in this
    process (for trusted corpora).
    """
    path = corpus.path if isinstance(corpus, Corpus) else Path(corpus)
    problems = check_folder(path)
    if any(problem.field != "corpus.json" for problem in problems):
        return problems
    for report in check_rows(open_corpus(path), workers=workers):
        problems.extend(report.problems)
    return problems


def check_folder(path: Path) -> list[Problem]:
    """Schema, sidecars, shards and their checksum, unique ids, the rejected table."""
    try:
        corpus = open_corpus(path)
    except (ValueError, KeyError, OSError, pa.ArrowInvalid) as error:
        return [Problem(None, "state.json", str(error), FIX_FOLDER)]
    if isinstance(corpus, PublishedCorpus):  # the Hub holds its checksums
        return list(_ids(corpus))
    problems = [*_schema(path, corpus), *_info(corpus), *_fingerprint(path), *_ids(corpus)]
    if (path / "rejected").exists():
        try:
            rejected = Table(path / "rejected")
            missing = set(REJECTED_SCHEMA.names) - set(rejected.schema.names)
            if missing:
                text = f"there is no column {sorted(missing)}"
                problems.append(Problem(None, "rejected", text, FIX_FOLDER))
        except (ValueError, KeyError) as error:
            problems.append(Problem(None, "rejected", str(error), FIX_FOLDER))
    return problems


def _schema(path: Path, corpus: Corpus) -> Iterator[Problem]:
    for field in SCHEMA:
        found = corpus.schema.field(field.name).type
        if found != field.type:
            text = f"the column is {_brief(found)}, not {_brief(field.type)}"
            yield Problem(None, field.name, text, "convert it with the version that made it")
    try:
        features = json.loads((path / "dataset_info.json").read_text())["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Problem(None, "dataset_info.json", f"cannot be read: {error}", FIX_FOLDER)
        return
    if set(features) != set(corpus.schema.names):
        names = sorted(set(features) ^ set(corpus.schema.names))
        yield Problem(None, "dataset_info.json", f"and the shards differ in {names}", FIX_FOLDER)


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
        yield Problem(None, "corpus.json", "is missing, so how it was made is not known", again)
    elif info.get("state") != "complete":
        yield Problem(None, "corpus.json", f"the state is {info.get('state')!r}", again)
    elif info.get("rows") not in (None, len(corpus)):
        text = f"says {info['rows']} rows, the shards hold {len(corpus)}"
        yield Problem(None, "corpus.json", text, FIX_FOLDER)


def _fingerprint(path: Path) -> Iterator[Problem]:
    state = json.loads((path / "state.json").read_text())
    names = [Path(entry["filename"]).name for entry in state["_data_files"]]
    digest = hashlib.sha256()
    for name in names:
        digest.update(file_sha256(path / name).encode())
    if state.get("_fingerprint") != digest.hexdigest()[:16]:
        text = "the checksum of the shards is not the one that was written with them"
        yield Problem(None, "state.json", text, FIX_FOLDER)
    stray = sorted({p.name for p in path.glob("*.arrow")} - set(names))
    if stray:
        text = f"does not name the shards {stray[:3]}"
        yield Problem(None, "state.json", text, "remove them if they are left over")


def _ids(corpus: Corpus | PublishedCorpus) -> Iterator[Problem]:
    repeated = [id for id, count in Counter(corpus.ids()).items() if count > 1]
    if repeated:
        text = f"{len(repeated)} ids are there more than once, the first is {repeated[0]!r}"
        yield Problem(None, "id", text, "merge it into a new corpus with `layerflow merge`")


def check_rows(
    corpus: Corpus | PublishedCorpus, *, workers: int = 0, indices: Sequence[int] | None = None
) -> Iterator[RowReport]:
    """``check_row`` of every row, or of those given, in order; workers as of ``validate``."""
    chosen = range(len(corpus)) if indices is None else indices
    requests = [json.dumps(index).encode() for index in chosen]
    answers = contained_map(row_checker, Path(corpus.path), requests, workers)
    for index, answer in zip(chosen, answers, strict=True):
        if isinstance(answer, MediaError):
            yield RowReport((Problem(index, "media cells", str(answer)),))
        else:
            data = json.loads(answer)
            problems = tuple(Problem(**problem) for problem in data["problems"])
            yield RowReport(problems, data["kind"], data["encoded_rms"])


def row_checker(path: Path) -> Callable[[bytes], bytes]:
    """The handler of ``check_rows``: a row's index in, its report out, as JSON."""
    corpus = open_corpus(path)

    def check(request: bytes) -> bytes:
        index = json.loads(request)
        return json.dumps(asdict(check_row(corpus.row(index), index))).encode()

    return check
