"""Rows that are removed: gone with what was made of them, purged, and kept from coming back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus import log
from layerflow.corpus.changes.tombstones import Tombstones, read_tombstone
from layerflow.corpus.derive import filter_corpus, merge_corpora
from layerflow.corpus.latents import Latents
from layerflow.corpus.published import open_corpus
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus
from layerflow.corpus.validate import validate
from pipelines.compact import run_compact
from pipelines.remove import Wanted, run_remove
from tests.pipelines.engine.test_growth import at_every_call
from tests.support.job_units import files
from tests.support.sourced import (
    OF_SECRET,
    OTHER,
    SECRET,
    bytes_of,
    clip,
    latents_of,
    make,
    numbers,
    story,
)

LEFT = [0, 2, 5, 7]
QUIET: dict[str, Any] = {"workers": 0, "quiet": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story in two versions: the first five clips, then all of them."""
    out = tmp_path_factory.mktemp("remove") / "c"
    make(out, story()[:5])
    make(out, story(), append=True)
    return out


@pytest.fixture
def corpus(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "c"))


def remove(out: Path | str, source: str = SECRET, **how: Any) -> Any:
    return run_remove(out, Wanted(sources=[source]), reason="asked for", **QUIET, **how)


def test_a_source_goes_with_its_copies_and_all_that_was_made_of_it(corpus: Path) -> None:
    before = list(Corpus.open(corpus).rows())
    done = remove(corpus)
    assert (done.version, done.rows) == (3, 4)
    found = Corpus.open(corpus)
    assert numbers(found.ids()) == LEFT
    assert list(found.rows()) == [row for row in before if int(row["id"], 16) in LEFT]
    assert [row["uri"] for row in found.rejected()] == ["a.mp4"]
    assert found.info["rows"] == 4 and found.info["rejected"] == 1
    assert found.info["reasons"] == {"gate: flicker over its bound": 1}
    assert validate(corpus) == []
    assert numbers(Corpus.open(corpus, 2).ids()) == list(range(8))  # until it is purged
    assert remove(corpus).version == 3  # the same again does nothing


@pytest.mark.slow
def test_datasets_opens_what_is_left(corpus: Path) -> None:
    datasets = pytest.importorskip("datasets")
    remove(corpus)
    assert numbers(list(datasets.load_from_disk(str(corpus))["id"])) == LEFT


def test_purged_bytes_are_nowhere_and_old_versions_say_so(corpus: Path) -> None:
    rows = story()
    remove(corpus)
    assert rows[1]["blended"] in bytes_of(corpus)
    done = run_remove(corpus, purge=True, **QUIET)  # later, of what was removed before
    assert done.version == 3 and done.purged > 0
    left = bytes_of(corpus)
    for number in OF_SECRET:
        for layer in ("foreground", "background", "blended"):
            assert rows[number][layer] not in left
    assert SECRET.encode() not in left and b"copy.mp4" not in left
    assert all(rows[number]["blended"] in left for number in LEFT)
    for old in (1, 2):
        with pytest.raises(ValueError, match=f"version {old} is gone: it held rows that were rem"):
            open_corpus(f"{corpus}@v{old}")
    said = CliRunner().invoke(build_app(), ["log", str(corpus)]).output
    assert said.count("purged, can no longer be read") == 2
    assert validate(corpus) == [] and run_remove(corpus, purge=True, **QUIET).purged == 0
    assert run_compact(corpus, forget=True, **QUIET).shards == 1
    assert numbers(Corpus.open(corpus).ids()) == LEFT


def test_a_tombstone_says_when_and_why_and_not_what(corpus: Path) -> None:
    remove(corpus)
    version = Corpus.open(corpus).version
    assert version is not None
    (entry,) = Tombstones.of(Store(corpus), version).entries
    assert (entry.by, entry.reason, entry.rows) == ("source", "asked for", 4)
    text = (corpus / "versions" / version.tombstones[0]).read_text()
    assert SECRET not in text and "ann" not in text and "0000000000000001" not in text
    (corpus / "versions" / version.tombstones[0]).write_text(text[:-3])
    with pytest.raises(ValueError, match="cannot be read"):
        read_tombstone(Store(corpus), version.tombstones[0])


def test_it_does_not_come_back_by_append(corpus: Path) -> None:
    remove(corpus)
    run_remove(corpus, purge=True, **QUIET)
    assert make(corpus, story(), append=True).added == 0
    changed = [*story(), clip(20, SECRET), clip(21, "other.mp4", content=SECRET), clip(22, "n.mp4")]
    summary = make(corpus, changed, OTHER, append=True)  # other options: every unit runs again
    assert summary.added == 1
    assert numbers(Corpus.open(corpus).ids()) == [*LEFT, 22]
    assert SECRET.encode() not in bytes_of(corpus)
    refused = [row for row in Corpus.open(corpus).rejected() if row["stage"] == "removed"]
    assert {row["uri"] for row in refused} == {""}
    assert len(refused) == 9  # six clips, and three rejected rows of the two known addresses
    assert refused[0]["reason"].endswith(": asked for")


def test_it_does_not_come_back_by_the_same_job(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    make(out, story())
    remove(out)
    assert make(out, story()).kept == 4  # nothing is asked of it
    assert numbers(Corpus.open(out).ids()) == LEFT


def test_it_does_not_come_back_by_merge_or_filter(corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make(other, [clip(30, SECRET), clip(31, "k.mp4")])
    remove(corpus)
    merged = tmp_path / "merged"
    merge_corpora([Corpus.open(other), open_corpus(f"{corpus}@v2"), Corpus.open(corpus)], merged)
    assert sorted(numbers(Corpus.open(merged).ids())) == [*LEFT, 31]
    assert SECRET.encode() not in bytes_of(merged)
    make(merged, [clip(32, SECRET)], append=True)  # the new corpus has the tombstone, too
    filter_corpus(Corpus.open(merged), tmp_path / "few", where=["flicker<0.2"])
    make(tmp_path / "few", [clip(33, SECRET)], append=True)
    assert 33 not in numbers(Corpus.open(tmp_path / "few").ids())
    assert 32 not in numbers(Corpus.open(merged).ids())


def test_a_licence_goes_whatever_its_spelling(corpus: Path) -> None:
    done = run_remove(corpus, Wanted(licences=["cc by-nd 4.0"]), **QUIET)
    assert done.rows == 2 and numbers(Corpus.open(corpus).ids()) == [0, 1, 3, 4, 6, 7]
    again = [clip(40, "new.mp4", licence="CC-BY-ND-4.0"), clip(41, "e.png", licence=None)]
    assert make(corpus, again, OTHER, append=True).added == 0


def test_listed_rows_go_and_their_source_stays(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text(f"{4:016x}\n")
    words = ["remove", str(corpus), "--ids", str(tmp_path / "ids.txt"), "--workers=0", "--quiet"]
    said = CliRunner().invoke(build_app(), words)
    assert said.exit_code == 0 and "version 3; 2 clips of 1 sources gone" in said.output
    assert numbers(Corpus.open(corpus).ids()) == [0, 1, 2, 3, 5, 7]  # 6 was made of 4
    assert make(corpus, [clip(50, "a.mp4")], OTHER, append=True).added == 1


def test_what_was_removed_from_one_corpus_goes_from_what_was_made_of_it(
    corpus: Path, tmp_path: Path
) -> None:
    pasted = tmp_path / "pasted"
    make(pasted, [clip(60, "a.mp4", [f"a.mp4#{4:016x}", "x.mp4"]), clip(61, "x.mp4")])
    with pytest.raises(ValueError, match="nothing was ever removed"):
        run_remove(pasted, Wanted(like=[corpus]), **QUIET)
    remove(corpus)
    assert run_remove(pasted, Wanted(like=[corpus]), **QUIET).rows == 1
    assert numbers(Corpus.open(pasted).ids()) == [61]


def test_a_request_that_means_nothing_is_refused(corpus: Path) -> None:
    with pytest.raises(ValueError, match="there is no row of it"):
        remove(corpus, "nobody.mp4")
    with pytest.raises(ValueError, match="say what is to be removed"):
        run_remove(corpus, **QUIET)
    assert log.numbers(Store(corpus)) == [1, 2]


def test_nothing_may_be_left(tmp_path: Path) -> None:
    make(tmp_path / "c", [clip(1, SECRET)])
    remove(tmp_path / "c", purge=True)
    assert Corpus.open(tmp_path / "c").ids() == [] and validate(tmp_path / "c") == []
    assert make(tmp_path / "c", [clip(2, "b.mp4")], append=True).added == 1


def test_drawn_latents_lose_what_was_drawn_of_a_removed_source(
    corpus: Path, tmp_path: Path
) -> None:
    store = latents_of(corpus, tmp_path / "latents")
    ids = list(dict.fromkeys(Latents.open(store).column("source")))
    of = ["a.mp4", f"{SECRET}#{1:016x}", "c.mp4", "d.mp4", "a.mp4", "copy.mp4"]
    drawn = [
        {"id": id, "origin": clip(90, "plate.mp4", [parent, "plate.mp4"])["origin"]}
        for id, parent in zip(ids, [*of, *of], strict=False)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in drawn)
    (store / "origins.jsonl").write_text(lines)
    (store / "drawn.json").write_text('{"draws": "x"}')
    (store / "rejected.jsonl").write_text(json.dumps({"id": SECRET, "reason": "too short"}) + "\n")
    other = tmp_path / "other"  # of other ids: what is removed there is known by its sources alone
    make(other, [clip(70, SECRET), clip(71, "copy.mp4", content=SECRET), clip(72, "k.mp4")])
    remove(other)
    done = run_remove(other, latents=[store], **QUIET)
    assert done.latents == {str(store): 6}  # clips 1, 5 and 7: two variants of each
    left = [n for n in range(8) if n not in (1, 5, 7)]
    assert numbers(Latents.open(store).column("source")) == [n for n in left for _ in (0, 1)]
    assert (store / "origins.jsonl").read_text() == "".join(
        line for n, line in enumerate(lines.splitlines(keepends=True)) if n in left
    )
    assert (store / "drawn.json").read_text() == '{"draws": "x"}'
    assert SECRET.encode() not in bytes_of(store)


def test_latents_lose_the_rows_and_the_prompts(corpus: Path, tmp_path: Path) -> None:
    store = latents_of(corpus, tmp_path / "latents")
    before = Latents.open(store)
    done = remove(corpus, latents=[store])
    assert done.latents == {str(store): 8}
    found = Latents.open(store)
    assert numbers(found.column("source")) == [n for n in LEFT for _ in (0, 1)]
    assert found.raw(2) == before.raw(4) and found.identity() != before.identity()
    texts = {found.prompt_text(key) for key in found.prompt_keys()}
    assert "0, disc 2" in texts and "0, disc 4" not in texts and "1, waves" in texts
    assert b"disc 4" not in bytes_of(store) and not (store / "rejected.jsonl").exists()
    assert run_remove(corpus, latents=[store], **QUIET).latents == {str(store): 0}


@pytest.mark.slow
def test_a_removal_killed_at_any_moment_is_done_or_not_and_goes_on(
    made: Path, tmp_path: Path
) -> None:
    quiet = Path(shutil.copytree(made, tmp_path / "quiet"))
    remove(quiet, purge=True)
    expected = files(quiet)
    seen = set()
    for out in at_every_call(made, tmp_path, lambda out: remove(out, purge=True)):
        found = Corpus.open(out)
        assert found.version is not None
        seen.add(found.version.number)
        assert numbers(found.ids()) == (LEFT if found.version.number == 3 else list(range(8)))
        remove(out, purge=True)
        assert files(out) == expected
    assert seen == {2, 3}


@pytest.mark.slow
def test_a_purge_killed_between_two_files_goes_on(corpus: Path) -> None:
    remove(corpus)
    child = os.fork()
    if child == 0:
        real, calls = Store.remove, []

        def counted(self: Store, name: str) -> None:
            calls.append(name)
            if len([c for c in calls if c.endswith(".arrow")]) == 2:
                os._exit(9)
            real(self, name)

        Store.remove = counted  # type: ignore[method-assign]
        run_remove(corpus, purge=True, **QUIET)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert numbers(Corpus.open(corpus).ids()) == LEFT
    run_remove(corpus, purge=True, **QUIET)
    assert SECRET.encode() not in bytes_of(corpus)
