"""Corpora in an object store, through the real s3fs against a local server that speaks its API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus import log
from layerflow.corpus.derive import filter_corpus, merge_corpora
from layerflow.corpus.latents import Latents
from layerflow.corpus.published import open_corpus
from layerflow.corpus.stats import stats
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus
from layerflow.corpus.validate import validate
from layerflow.model.presets import init_directory
from pipelines.compact import run_compact
from pipelines.encode.job import run_encode
from pipelines.engine.jobs import Outcome, run_job, unit_key
from pipelines.engine.remote_staging import begin
from pipelines.engine.staging import json_part
from pipelines.paste.job import run_paste
from pipelines.remove import Wanted, run_remove
from tests.support.corpora import make_rejected, make_rows
from tests.support.job_units import RECIPE, units, work
from tests.support.pasted import backdrops
from tests.support.pasted import options as paste_options
from tests.support.sourced import OTHER, SECRET, bytes_of, make, numbers, story

pytest.importorskip("s3fs", reason="needs the extra s3")
pytest.importorskip("moto", reason="needs the extra dev")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """An S3 file system with the empty bucket `corpora`, the default one of this process."""
    from tests.support.s3 import s3_bucket

    with s3_bucket("corpora") as system:
        yield system


@pytest.fixture
def out(bucket: Any, request: pytest.FixtureRequest) -> str:
    return f"s3://corpora/{request.node.name[:60].rstrip('_')}"


def run(out: Path | str, last: int, work: Any = work, first: int = 0, **how: Any) -> Any:
    given: dict[str, Any] = {"recipe": RECIPE, "workers": 0, "quiet": True} | how
    return run_job(units(last)[first:], work, out=out, **given)


def test_a_store_keeps_the_first_of_two_files_of_a_name(out: str) -> None:
    store = Store(out)
    assert store.put_new("a/one", b"first") and not store.put_new("a/one", b"second")
    assert store.read("a/one") == b"first" and store.read("a/one", 1, 3) == b"ir"
    store.put("a/one", b"third")
    assert store.names() == {"a/one": 5} and store.size("a/one") == 5
    with pytest.raises(FileNotFoundError):
        store.read("two")
    store.remove("a")
    assert store.names() == {}


def test_a_job_in_a_bucket_makes_the_shards_and_rows_of_a_local_one(
    out: str, bucket: Any, tmp_path: Path
) -> None:
    summary = run(out, 6)
    assert (summary.out, summary.kept, summary.rejected) == (out, 8, 2)
    run(tmp_path / "c", 6)
    here, there = Corpus.open(tmp_path / "c"), open_corpus(out)
    assert isinstance(there, Corpus)
    assert there.shards == here.shards and list(there.rows()) == list(here.rows())
    assert there.row(5, ["id", "origin"]) == here.row(5, ["id", "origin"])
    assert there.rejected() == here.rejected() and there.info == here.info
    assert stats(there) == stats(here)
    names = {name.split("/")[0] for name in Store(out).names()}
    assert names == {"corpus.json", here.shards[0].file, "rejected", "versions"}
    again = run(out, 6, lambda payload: pytest.fail("ran again"))
    assert (again.kept, again.rejected) == (8, 2)


def test_a_job_in_a_bucket_that_stopped_goes_on_with_what_is_missing(
    out: str, tmp_path: Path
) -> None:
    calls: list[int] = []

    def stops(payload: dict[str, Any]) -> Outcome:
        calls.append(payload["index"])
        if payload["index"] == 4 and len(calls) == 5:
            raise KeyboardInterrupt
        return work(payload)

    with pytest.raises(KeyboardInterrupt):
        run(out, 6, stops)
    with pytest.raises(ValueError, match="holds no corpus"):
        open_corpus(out)
    assert run(out, 6, stops).resumed == 4
    assert calls == [0, 1, 2, 3, 4, 4, 5]
    run(tmp_path / "c", 6)
    assert open_corpus(out).ids() == Corpus.open(tmp_path / "c").ids()


def test_a_unit_that_was_changed_in_the_bucket_is_done_again(out: str, bucket: Any) -> None:
    calls: list[int] = []

    def spoils(payload: dict[str, Any]) -> Outcome:
        calls.append(payload["index"])
        if payload["index"] == 3 and calls.count(3) == 1:
            (path,) = bucket.glob(
                f"{out.removeprefix('s3://')}/staging/*/{units(1)[0].key}/rows.arrow"
            )
            data = bytearray(bucket.cat_file(path))
            data[len(data) // 2] ^= 1
            bucket.pipe_file(path, bytes(data))
        return work(payload)

    run(out, 4, spoils)
    assert calls == [0, 1, 2, 3, 0]


def test_what_is_staged_in_a_bucket_is_seen_by_listings_of_a_part_at_a_time(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = begin(f"{out}/staging", (), frozenset(), frozenset({"said"}))
    keys = [unit_key(number) for number in range(24)]
    for key in keys[:12]:
        staging.commit(key, {"said": json_part(key), "file": json_part([key])})
    staging.below("looks").commit(keys[20], {"file": json_part(0)})
    Store(f"{out}/staging").put(f"{keys[13][:2]}/{keys[13]}/file", b"of a killed worker")
    assert len(Store(f"{out}/staging").names()) == 12 * 2 + 2 + 1 + 2  # tokens, the last two units
    longest: list[int] = []
    names = Store.names

    def counted(store: Store, below: str = "") -> dict[str, int]:
        found = names(store, below)
        longest.append(len(found))
        return found

    monkeypatch.setattr(Store, "names", counted)
    assert staging.missing(keys) == set(keys[12:])
    staging.discard(keys[0])
    assert staging.missing(keys[:2]) == {keys[0]}
    staging.clear()
    assert max(longest) < 12
    monkeypatch.undo()
    assert Store(f"{out}/staging").names() == {}


def test_a_corpus_in_a_bucket_grows_and_is_compacted(out: str, tmp_path: Path) -> None:
    for where in (out, tmp_path / "c"):
        run(where, 2)
        run(where, 5, append=True)
        assert run(where, 5, append=True).added == 0
        run_compact(where, workers=0, quiet=True)
    here, there = Corpus.open(tmp_path / "c"), open_corpus(out)
    assert isinstance(there, Corpus)
    assert there.shards == here.shards and len(there.shards) == 1
    assert there.ids() == here.ids()
    assert open_corpus(out, 1).ids() == here.ids()[:4]
    run_compact(out, workers=0, quiet=True, forget=True)
    assert log.numbers(Store(out)) == [3]
    assert sum(name.startswith("data-") for name in Store(out).names()) == 1


def test_two_jobs_at_once_on_one_corpus_of_a_bucket_both_come_in(out: str) -> None:
    run(out, 1)

    def other_first(payload: dict[str, Any]) -> Outcome:
        if log.numbers(Store(out)) == [1]:
            other = make_other()
            run_job(units(4)[3:], work, out=out, recipe=other, workers=0, quiet=True, append=True)
        return work(payload)

    with pytest.raises(OSError, match="another job has added version 2"):
        run(out, 2, other_first, append=True)
    run(out, 2, append=True)
    found = open_corpus(out)
    assert len(found) == 6 and len(set(found.ids())) == 6


def make_other() -> Any:
    from pipelines.engine.jobs import make_recipe

    return make_recipe("pasted", {"size": "another"}, 1)


def test_commands_that_read_a_corpus_read_one_in_a_bucket(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(4)
    cutouts = units(1), lambda payload: Outcome(rows=rows, rejected=make_rejected())
    for where in (out, tmp_path / "c"):
        run_job(*cutouts, out=where, recipe=RECIPE, workers=0, quiet=True)
    here = Corpus.open(tmp_path / "c")
    assert merge_corpora([open_corpus(out)], tmp_path / "m").left_out == 3
    assert list(Corpus.open(tmp_path / "m").rows()) == list(here.rows())
    filter_corpus(open_corpus(out), tmp_path / "f", kinds=["pasted"])
    assert Corpus.open(tmp_path / "f").ids() == [r["id"] for r in rows if r["kind"] == "pasted"]
    assert validate(out) == []
    told = CliRunner().invoke(build_app(), ["log", out]).output
    assert told.startswith("version 1  pasted: 4 rows in 1 shards")
    behind = backdrops(tmp_path / "bg", 1)
    said = paste_options(tmp_path, Path("unused"), behind, foregrounds=[out], count=2, frames=4)
    run_paste(said, workers=0, quiet=True)
    uris = {row["origin"]["uri"] for row in Corpus.open(said.out).rows(["origin"])}
    assert uris and all(uri.startswith("video-") for uri in uris)


def test_latents_of_a_corpus_in_a_bucket_are_those_of_a_local_one(out: str, tmp_path: Path) -> None:
    model = init_directory(tmp_path / "model", "tiny")
    made: dict[str, list[dict[str, Any]]] = {}
    for where in (out, tmp_path / "c"):
        rows = lambda payload: Outcome(rows=make_rows(3))  # noqa: E731
        run_job(units(1), rows, out=where, recipe=RECIPE, workers=0, quiet=True)
        latents = tmp_path / f"latents-{len(made)}"
        how: dict[str, Any] = {"model": model, "out": latents, "workers": 0, "quiet": True}
        assert run_encode([where], size=(32, 40), frames=4, **how).clips == 3
        opened = Latents.open(latents)
        made[str(where)] = [opened.raw(index) for index in range(len(opened))]
    one, other = made.values()
    assert one == other


def test_what_else_lies_in_a_bucket_stays_there(out: str, bucket: Any) -> None:
    Store(out).put("thesis.txt", b"mine")
    with pytest.raises(ValueError, match="not empty"):
        run(out, 1)
    with pytest.raises(ValueError, match="holds no corpus"):
        open_corpus(out)
    assert Store(out).read("thesis.txt") == b"mine"


def test_a_bucket_that_is_not_there_is_an_error_with_its_name(bucket: Any) -> None:
    with pytest.raises((ValueError, OSError), match="no-such-bucket"):
        run("s3://no-such-bucket/c", 1)


def test_a_source_is_removed_and_purged_from_a_bucket_and_stays_out(out: str) -> None:
    make(out, story()[:5])
    make(out, story(), append=True)
    done = run_remove(out, Wanted(sources=[SECRET]), purge=True, workers=0, quiet=True)
    assert (done.version, done.rows, done.purged) == (3, 4, 3)  # two shards, a rejected table
    assert numbers(Corpus.open(out).ids()) == [0, 2, 5, 7]
    assert SECRET.encode() not in bytes_of(out) and story()[1]["blended"] not in bytes_of(out)
    with pytest.raises(ValueError, match="version 1 is gone"):
        Corpus.open(out, 1)
    assert make(out, story(), OTHER, append=True).added == 0
    assert validate(out) == []
