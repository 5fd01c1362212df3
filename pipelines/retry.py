"""``layerflow retry``: the rejected rows of a corpus through the jobs that made it, once more.

A video that was repaired, a disk that was full, new code, a looser quality gate: only the units of
work that hold rejected rows are done again, with the recorded options. The result is a new corpus:
all rows of the old one, then the clips that came of rejected rows; what is refused again is in its
``rejected``. With another gate, near-duplicates that it lets pass are rejected rows like others.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerflow.corpus.columns import joined_schema
from layerflow.corpus.derive import Derived, recorded_jobs, write_derived
from layerflow.corpus.table import Corpus
from layerflow.outputs import local_output
from layerflow.seeds import in_blocks
from manifests.common import check
from pipelines.engine.jobs import Unit
from pipelines.gates import judge, resolve_gate

Rejected = Mapping[str, Any]
Replay = tuple[Callable[..., Any], Any, Callable[[Unit], bool]]
"""A job, its options, and which of its units are to be done again."""
RECORDED = "the recorded job"
LEFT_OUT = ("filter", "merge", "duplicates", "removed")  # on purpose, not for a fault of the input


@dataclass(frozen=True)
class Retried:
    """The new corpus; how many rejected rows were replayed, and how many clips came of them."""

    derived: Derived
    replayed: int
    gained: int


def run_retry(
    path: Path,
    out: Path,
    *,
    gate: str | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> Retried:
    """Replay the rejected rows of the corpus ``path`` into the new corpus ``out``.

    gate: another quality gate for mined clips. Interrupted and started again it goes on. Raises
    ValueError when no row can be replayed, with the reason.
    """
    out = local_output(out)
    corpus = Corpus.open(path)
    replays = _replays(corpus, recorded_jobs(path), gate)
    scratch = out.with_name(f".{out.name}.retry")
    made: list[tuple[Corpus, list[Rejected]]] = []
    for recipe, (job, rows) in sorted(replays.items()):
        options = dict(job["options"])
        if gate is not None and job["kind"] == "mined":
            options["gate"] = gate
        again = scratch / f"{recipe}-{gate}"
        run, checked, wanted = REPLAYS[job["kind"]]({**options, "out": str(again)}, rows)
        # units that were lost before may all be lost again, in the new corpus
        run(checked, workers=workers, quiet=quiet, only=wanted, accept_lost=True)
        if job["kind"] == "pasted" and Corpus.open(again).info["recipe"] != recipe:
            raise ValueError("pasted clips cannot be replayed by another version; paste them again")
        made.append((Corpus.open(again), rows))
    derived = _joined(corpus, made, out, gate, recorded_jobs(path))
    shutil.rmtree(scratch, ignore_errors=True)
    replayed = sum(len(rows) for _, rows in made)
    return Retried(derived, replayed, derived.rows - len(corpus))


def _replays(
    corpus: Corpus, jobs: Mapping[str, Any], gate: str | None
) -> dict[str, tuple[Mapping[str, Any], list[Rejected]]]:
    """Recipe -> its recorded job and the rejected rows that it may do better now."""
    found: dict[str, tuple[Mapping[str, Any], list[Rejected]]] = {}
    unknown = 0
    for row in corpus.rejected():
        job = jobs.get(row["recipe"])
        if row["stage"] in LEFT_OUT and not _far_enough(row, job, gate):
            continue
        if job is None or job["kind"] not in REPLAYS:
            unknown += 1
        elif job["kind"] != "pasted" or row["stage"] == "draw":
            found.setdefault(row["recipe"], (job, []))[1].append(row)
    if not found:
        why = f"of {unknown} the job is not on record" if unknown else "there is none to replay"
        raise ValueError(
            f"{corpus.path}: no rejected row can be replayed: {why}. Run its job again with "
            "another --out"
        )
    return found


def _far_enough(row: Rejected, job: Mapping[str, Any] | None, gate: str | None) -> bool:
    """A near-duplicate of a mined clip that the other gate does not call one."""
    scores = {"duplicate_distance": row["quality"]["duplicate_distance"]}
    if gate is None or job is None or row["stage"] != "duplicates" or None in scores.values():
        return False
    return judge(scores, resolve_gate(gate, job["options"].get("thresholds"))) is None


def _joined(
    corpus: Corpus,
    made: Sequence[tuple[Corpus, list[Rejected]]],
    out: Path,
    gate: str | None,
    jobs: Mapping[str, Any],
) -> Derived:
    schema = joined_schema([corpus.schema, *(again.schema for again, _ in made)])
    if schema is None:
        raise ValueError(f"{corpus.path} has columns of another version; make it again")
    left = Counter(_key(row) for _, asked in made for row in asked)
    old = [row for row in corpus.rejected() if not _taken(left, _key(row))]
    settled = {_span(row) for row in old if row["kind"] == "mined" and row["start"] is not None}
    # Of several subjects of a window each has a clip.
    columns = [name for name in ("id", "kind", "origin", "subject") if name in schema.names]
    told = [name for name in columns if name in corpus.schema.names]
    each = any(job["options"].get("subjects") == "each" for job in jobs.values())
    clips = {_clip_key(row, each) for row in corpus.rows(told)}

    def is_new(row: Mapping[str, Any]) -> bool:  # a unit holds more than what was asked for
        is_settled = row["kind"] == "mined" and _span(row["origin"]) in settled
        return not is_settled and _clip_key(row, each) not in clips

    def rows() -> Iterator[dict[str, Any]]:
        yield from corpus.rows()
        for again, _ in made:
            for index, small in enumerate(again.rows(columns)):
                if is_new(small):
                    yield again.row(index)

    def rejected() -> Iterator[dict[str, Any]]:
        yield from old
        for again, _ in made:
            for row in again.rejected():
                if row["start"] is None or _span(row) not in settled:
                    yield row

    corpora = [corpus, *(again for again, _ in made)]
    return write_derived(out, "retry", {"gate": gate}, corpora, schema, rows(), rejected())


def _taken(left: Counter[tuple[Any, ...]], key: tuple[Any, ...]) -> bool:
    """Take one of ``key``; False when none is left."""
    left[key] -= 1
    return left[key] >= 0


def _span(source: Mapping[str, Any]) -> tuple[str, float, float]:
    start, end = (round(source[name] or 0.0, 2) for name in ("start", "end"))
    return source["uri"], start, end


def _key(row: Rejected) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("recipe", "uri", "stage", "reason", "start", "end"))


def _clip_key(row: Mapping[str, Any], each: bool) -> tuple[Any, ...]:
    """What is the same for one clip made twice, also with another recipe. each: by subjects."""
    source = row["origin"]
    if row["kind"] == "pasted":
        return ("pasted", row["id"])
    span = (round(source["start"] or 0.0, 2), round(source["end"] or 0.0, 2))
    subject = row.get("subject") if each else None
    return (row["kind"], source["uri"], source["sha256"], *span, subject)


# ---- the three jobs ------------------------------------------------------------------------------


def _mine(options: dict[str, Any], rows: Sequence[Rejected]) -> Replay:
    from manifests.mine import MineOptions
    from pipelines.mine.job import run_mine

    spans: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        whole = row["start"] is None
        spans.setdefault(row["uri"], []).append(
            (0.0, float("inf")) if whole else (row["start"], row["end"])
        )

    def wanted(unit: Unit) -> bool:
        start, end = unit.payload["start"], unit.payload["end"]
        return any(a < end and b > start for a, b in spans.get(unit.payload["uri"], ()))

    return run_mine, check(options, MineOptions, RECORDED), wanted


def _pack(options: dict[str, Any], rows: Sequence[Rejected]) -> Replay:
    from manifests.pack import PackOptions
    from pipelines.pack.job import run_pack
    from pipelines.pack.plan import make_plan, uris_of

    checked = check(options, PackOptions, RECORDED)
    uris = {row["uri"] for row in rows}
    plan = make_plan(checked)

    def wanted(unit: Unit) -> bool:
        return not uris.isdisjoint(uris_of(unit.payload, plan))

    return run_pack, checked, wanted


def _paste(options: dict[str, Any], rows: Sequence[Rejected]) -> Replay:
    from manifests.paste import PasteOptions
    from pipelines.inputs.sources import list_foregrounds
    from pipelines.paste.job import run_paste

    checked = check(options, PasteOptions, RECORDED)
    sources = list_foregrounds(checked.foregrounds, checked.gate)
    uris = {row["uri"] for row in rows}

    def wanted(unit: Unit) -> bool:
        draws = range(unit.payload["start"], unit.payload["stop"])
        firsts = (in_blocks(checked.seed, i, checked.count, len(sources)) for i in draws)
        return any(sources[first].uri in uris for first in firsts)

    return run_paste, checked, wanted


REPLAYS: dict[str, Callable[..., Replay]] = {"mined": _mine, "image": _pack, "pasted": _paste}
