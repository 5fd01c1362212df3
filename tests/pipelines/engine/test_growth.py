"""A corpus that grows: append, compaction, and what a kill at any moment leaves."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus import log
from layerflow.corpus.published import open_corpus
from layerflow.corpus.stats import tallied
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus, rejected_row
from layerflow.corpus.validate import check_folder
from pipelines import compact as compaction
from pipelines.compact import run_compact
from pipelines.engine import cutting
from pipelines.engine.jobs import Outcome, Summary, Unit, make_recipe, run_job, unit_key
from tests.support.corpus_rows import make_row
from tests.support.job_units import RECIPE, files, units, work

Rows = list[dict[str, Any]]


def run(out: Path, first: int, last: int, work: Any = work, **how: Any) -> Summary:
    """The job's units from ``first`` up to ``last``."""
    chosen = units(last)[first:]
    given: dict[str, Any] = {"recipe": RECIPE, "workers": 0, "quiet": True} | how
    return run_job(chosen, work, out=out, **given)


def ids(first: int, last: int) -> list[str]:
    """Of the rows that ``work`` makes of those units."""
    kept = [index for index in range(first, last) if index % 3 != 2]
    return [make_row(2 * index + k)["id"] for index in kept for k in (0, 1)]


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("data-*.arrow")}


def test_append_does_the_new_work_only_and_leaves_the_old_shards_alone(tmp_path: Path) -> None:
    out = tmp_path / "c"
    run(out, 0, 4)
    before = shards(out)
    calls: list[int] = []

    def counted(payload: dict[str, Any]) -> Outcome:
        calls.append(payload["index"])
        return work(payload)

    summary = run(out, 0, 7, counted, append=True)
    assert calls == [4, 5, 6]
    assert (summary.kept, summary.added, summary.rejected) == (10, 4, 2)
    assert before.items() <= shards(out).items() and len(shards(out)) == 2
    corpus = Corpus.open(out)
    assert corpus.ids() == ids(0, 4) + ids(4, 7)
    assert Corpus.open(out, 1).ids() == ids(0, 4)
    assert [row["uri"] for row in corpus.rejected()] == ["2.mp4", "5.mp4"]
    assert [row["uri"] for row in Corpus.open(out, 1).rejected()] == ["2.mp4"]
    assert corpus.info["reasons"] == {"gate: score below its bound": 2}
    assert check_folder(out) == []


def test_the_same_inputs_again_add_nothing(tmp_path: Path) -> None:
    out = tmp_path / "c"
    run(out, 0, 4)
    run(out, 2, 6, append=True)
    before = files(out)

    def never(payload: dict[str, Any]) -> Outcome:
        raise AssertionError("ran again")

    for first, last, append in ((0, 6, True), (3, 5, True), (0, 4, False), (2, 6, False)):
        summary = run(out, first, last, never, append=append)
        assert (summary.kept, summary.added or 0) == (8, 0)
    assert files(out) == before
    with pytest.raises(ValueError, match=r"made from other inputs.*--append"):
        run(out, 0, 7)


def test_another_recipe_may_be_added_and_equal_clips_are_kept_once(tmp_path: Path) -> None:
    out = tmp_path / "c"
    run(out, 0, 4)
    other = make_recipe("pasted", {"size": "48x64"}, 1)
    more = [Unit(unit_key("other", i), i, {"index": i, "uri": f"o{i}.mp4"}) for i in (0, 4)]
    summary = run_job(more, work, out=out, recipe=other, workers=0, quiet=True, append=True)
    assert summary.added == 2
    assert Corpus.open(out).ids() == ids(0, 4) + ids(4, 5)
    again = [r for r in Corpus.open(out).rejected() if r["stage"] == "duplicates"]
    assert [r["reason"] for r in again] == ["the same content as a clip of an earlier version"] * 2


def test_append_to_nothing_begins_a_corpus(tmp_path: Path) -> None:
    run(tmp_path / "c", 0, 4, append=True)
    run(tmp_path / "d", 0, 4)
    assert files(tmp_path / "c") == files(tmp_path / "d")


def test_a_corpus_of_before_there_was_a_log_grows(tmp_path: Path) -> None:
    out = tmp_path / "c"
    run(out, 0, 4)
    shutil.rmtree(out / "versions")
    calls: list[int] = []

    def counted(payload: dict[str, Any]) -> Outcome:
        calls.append(payload["index"])
        return work(payload)

    assert run(out, 0, 4, counted, append=True).added == 0  # the same job: its units are known
    shutil.rmtree(out / "versions")
    summary = run(out, 3, 7, counted, append=True)
    assert calls == [3, 4, 5, 6]  # which units were done is not on record; their ids are
    assert Corpus.open(out).ids() == ids(0, 4) + ids(4, 7) and summary.added == 4
    assert Corpus.open(out, 1).ids() == ids(0, 4)


def test_other_columns_are_refused_before_any_work(tmp_path: Path) -> None:
    from layerflow.corpus.columns import EXTENDED_SCHEMA

    run(tmp_path / "c", 0, 2)
    before = files(tmp_path / "c")
    with pytest.raises(ValueError, match="columns of another version"):
        run(tmp_path / "c", 2, 4, append=True, schema=EXTENDED_SCHEMA)
    assert files(tmp_path / "c") == before


def test_who_was_slower_is_told_and_adds_his_units_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two drivers that do not see each other's lock, as in an object store."""
    out = tmp_path / "c"
    run(out, 0, 2)

    def meanwhile(payload: dict[str, Any]) -> Outcome:
        if payload["index"] == 3 and log.numbers(Store(out))[-1] == 1:
            found = log.newest(Store(out))
            assert found is not None
            log.commit(Store(out), found.next("another job"))
        return work(payload)

    with pytest.raises(OSError, match="another job has added version 2"):
        run(out, 2, 5, meanwhile, append=True)
    assert Corpus.open(out).ids() == ids(0, 2)
    calls: list[int] = []
    run(out, 2, 5, lambda p: (calls.append(1), work(p))[1], append=True)
    assert calls == [] and Corpus.open(out).ids() == ids(0, 5)


# ---- killed ----------------------------------------------------------------------------------


def die_at(name: str, count: int) -> None:
    """Makes the call of that number to ``os.NAME`` the last one."""
    real, calls = getattr(os, name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os._exit(9)
        return real(*arguments, **named)

    setattr(os, name, counted)


def killed(name: str, count: int, do: Callable[[], object]) -> bool:
    """Run ``do`` in a child that dies at a call; whether it came that far."""
    child = os.fork()
    if child == 0:
        die_at(name, count)
        do()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def at_every_call(start: Path, tmp_path: Path, do: Callable[[Path], object]) -> list[Path]:
    """Copies of ``start`` in each of which ``do`` was killed at another call that writes."""
    found = []
    for name in ("fsync", "replace", "link", "rename"):
        for count in range(1, 60):
            out = tmp_path / f"{name}-{count}" / "c"
            shutil.copytree(start, out)
            if not killed(name, count, lambda out=out: do(out)):
                break
            found.append(out)
        assert count < 59
    return found


@pytest.mark.slow
def test_an_append_killed_at_any_moment_leaves_the_old_version_or_the_new_one(
    tmp_path: Path,
) -> None:
    start = tmp_path / "start"
    run(start, 0, 2)

    def grow(out: Path) -> Summary:
        return run(out, 2, 4, append=True)

    quiet = tmp_path / "quiet"
    shutil.copytree(start, quiet)
    grow(quiet)
    expected = files(quiet)
    datasets = pytest.importorskip("datasets")
    seen = set()
    for out in at_every_call(start, tmp_path, grow):
        corpus = Corpus.open(out)
        assert corpus.version is not None
        seen.add(corpus.version.number)
        assert corpus.ids() == (ids(0, 2), ids(0, 4))[corpus.version.number - 1]
        listed = list(datasets.load_from_disk(str(out))["id"])  # by the sidecars
        assert listed in (ids(0, 2), ids(0, 4))
        grow(out)
        assert files(out) == expected
    assert seen == {1, 2}


@pytest.mark.slow
def test_a_compaction_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    start = tmp_path / "start"
    for last in (1, 2, 4):
        run(start, 0, last, append=True)
    quiet = tmp_path / "quiet"
    shutil.copytree(start, quiet)

    def join(out: Path) -> object:
        return run_compact(out, workers=0, quiet=True, forget=True)

    join(quiet)
    expected = files(quiet)
    for out in at_every_call(start, tmp_path, join):
        assert Corpus.open(out).ids() == ids(0, 4)
        join(out)
        assert files(out) == expected


# ---- compaction ------------------------------------------------------------------------------


def rows_of(corpus: Corpus) -> Rows:
    return list(corpus.rows())


def test_small_shards_are_put_together_and_rows_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c"
    for last in (1, 2, 4, 5):
        run(out, 0, last, append=True)
    before, rejected = rows_of(Corpus.open(out)), Corpus.open(out).rejected()
    sizes = [shard.bytes or 0 for shard in Corpus.open(out).shards]
    assert len(sizes) == 4
    monkeypatch.setattr(compaction, "SHARD_BYTES", int(2.1 * max(sizes)))
    done = run_compact(out, workers=0, quiet=True)
    assert (done.version, done.shards, done.joined) == (5, 2, 3)
    found = Corpus.open(out)
    assert rows_of(found) == before and found.rejected() == rejected
    assert found.shards[1] == Corpus.open(out, 4).shards[3]
    assert rows_of(Corpus.open(out, 4)) == before
    assert run_compact(out, workers=0, quiet=True).version == 5  # nothing is left to do
    assert check_folder(out) == []
    assert not list(out.glob("staging*"))


def test_rows_are_dropped_and_earlier_versions_forgotten(tmp_path: Path) -> None:
    out = tmp_path / "c"
    run(out, 0, 2)
    run(out, 0, 5, append=True)
    gone = [make_row(1)["id"], *ids(1, 2)]
    done = run_compact(out, drop=gone, forget=True, workers=0, quiet=True)
    assert done.dropped == 3
    corpus = Corpus.open(out)
    assert corpus.ids() == [make_row(0)["id"], *ids(2, 5)]
    assert log.numbers(Store(out)) == [3]
    held = b"".join(shards(out).values())
    assert make_row(1)["alpha"] not in held and make_row(0)["alpha"] in held
    with pytest.raises(ValueError, match="there is no version 1; there are 3 to 3"):
        open_corpus(out, 1)
    assert check_folder(out) == []
    assert run(out, 0, 5, append=True).added == 0  # what was dropped does not come back


def test_the_commands_say_what_they_did(tmp_path: Path) -> None:
    out, listed = tmp_path / "c", tmp_path / "ids.txt"
    run(out, 0, 2)
    run(out, 0, 4, append=True)
    listed.write_text(f"{make_row(0)['id']}\n")
    words = ["compact", str(out), "--drop", str(listed), "--forget", "--workers=0", "--quiet"]
    said = CliRunner().invoke(build_app(), words)
    assert said.output == (f"{out}: version 3, 1 shards; 2 shards put together, 1 rows left out\n")
    told = CliRunner().invoke(build_app(), ["log", str(out)]).output
    assert told.startswith("version 3  compact: 5 rows in 1 shards")


def test_cuts_of_shards_are_the_same_for_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerflow.corpus import writer

    monkeypatch.setattr(cutting, "SHARD_BYTES", 40_000)
    assert writer.SHARD_BYTES == 160 << 20
    run(tmp_path / "c", 0, 7)
    shuffled = [units(7)[i] for i in (3, 0, 5, 1, 4, 6, 2)]
    run_job(shuffled, work, out=tmp_path / "d", recipe=RECIPE, workers=0, quiet=True)
    assert len(shards(tmp_path / "c")) > 2
    assert shards(tmp_path / "c") == shards(tmp_path / "d")
    assert Corpus.open(tmp_path / "c").ids() == ids(0, 7)


def test_rejected_rows_are_never_held_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that twenty units gave, the batches of a few live at a time."""
    alive: weakref.WeakValueDictionary[int, pa.RecordBatch] = weakref.WeakValueDictionary()
    most: list[int] = []

    def watched(rejected: Iterable[pa.RecordBatch], reasons: Any) -> Iterator[pa.RecordBatch]:
        for batch in tallied(rejected, reasons):
            alive[len(most)] = batch
            most.append(len(alive))
            yield batch

    def dull(payload: dict[str, Any]) -> Outcome:
        names = [f"{payload['uri']}#{i}" for i in range(40)]
        rows = [rejected_row(n, "gate", "dull", kind="mined", recipe="r") for n in names]
        return Outcome([], rows)

    monkeypatch.setattr("pipelines.engine.growth.tallied", watched)
    monkeypatch.setattr("pipelines.engine.growth.SMALL_ROWS_PER_BATCH", 100)
    many = [Unit(f"u{i}", i, {"uri": f"{i}.mp4"}) for i in range(20)]
    recipe = make_recipe("mined", {}, 1)
    said = run_job(many, dull, out=tmp_path / "c", recipe=recipe, workers=0, quiet=True)
    assert said.rejected == 800 and len(most) == 20 and max(most) < 6
    assert said.reasons == {"gate: dull": 800}
    names = [row["uri"] for row in Corpus.open(tmp_path / "c").rejected()]
    assert names == [f"{unit}.mp4#{row}" for unit in range(20) for row in range(40)]
