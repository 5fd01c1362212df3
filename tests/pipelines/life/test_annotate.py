"""Corrected values: seen by every reader, without new media, and known to latents."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.derive import filter_corpus
from layerflow.corpus.latents import Latents
from layerflow.corpus.published import PublishedCorpus, open_corpus
from layerflow.corpus.table import Corpus
from layerflow.corpus.validate import validate
from layerflow.model.presets import init_directory
from pipelines.annotate import run_annotate
from pipelines.compact import run_compact
from pipelines.encode import job as encoding
from pipelines.encode.job import run_encode
from pipelines.publish.files import PublishOptions
from pipelines.publish.job import run_publish
from pipelines.remove import Wanted, run_remove
from pipelines.view.source import CorpusSource
from tests.pipelines.engine.test_growth import at_every_call
from tests.support.job_units import files
from tests.support.sourced import clip, make, numbers, story

TABLE = f"id,blended_prompt,flicker,licence\n{2:016x},a cat,,\n{5:016x},,0.75,CC0-1.0\n"
QUIET: dict[str, Any] = {"workers": 0, "quiet": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("annotate") / "c"
    make(out, story())
    return out


@pytest.fixture
def corpus(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "c"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "new.csv").write_text(TABLE)
    return tmp_path / "new.csv"


def corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as ``TABLE`` says they should be."""
    rows[2]["blended_prompt"] = "a cat"
    rows[5]["origin"]["licence"], rows[5]["quality"]["flicker"] = "CC0-1.0", 0.75
    return rows


def test_every_row_is_seen_corrected_and_no_shard_is_written(corpus: Path, table: Path) -> None:
    before, shards = list(Corpus.open(corpus).rows()), sorted(corpus.glob("data-*"))
    done = run_annotate(corpus, table)
    assert (done.version, done.clips) == (2, 2)
    assert done.columns == {"blended_prompt": 1, "flicker": 1, "licence": 1}
    found = Corpus.open(corpus)
    wanted = corrected(list(Corpus.open(corpus, 1).rows()))
    assert list(found.rows()) == wanted and list(Corpus.open(corpus, 1).rows()) == before
    assert [found.row(index) for index in (5, 2, 0)] == [wanted[index] for index in (5, 2, 0)]
    assert found.row(2, ["blended_prompt"]) == {"blended_prompt": "a cat"}
    assert found.row(5, ["quality"]) == {"quality": wanted[5]["quality"]}
    assert found.clip(2).prompts["blended"] == "a cat"
    assert sorted(corpus.glob("data-*")) == shards and validate(corpus) == []
    (small,) = (corpus / "overlay").glob("data-*")
    assert small.stat().st_size < sum(shard.stat().st_size for shard in shards) / 4
    assert run_annotate(corpus, table).version == 2  # the same again is nothing new


def test_later_corrections_hold_and_stay_when_a_corpus_grows_and_shrinks(
    corpus: Path, table: Path
) -> None:
    run_annotate(corpus, table)
    rows = [{"id": f"{2:016x}", "blended_prompt": "a dog", "ghost": 1.5}]
    pq.write_table(pa.Table.from_pylist(rows), table.with_suffix(".parquet"))
    assert run_annotate(corpus, table.with_suffix(".parquet")).columns == {
        "blended_prompt": 1,
        "ghost": 1,
    }
    make(corpus, [*story(), clip(9, "z.mp4")], append=True)
    run_remove(corpus, Wanted(ids=[f"{5:016x}"]), purge=True, **QUIET)
    found = {row["id"]: row for row in Corpus.open(corpus).rows()}
    assert numbers(list(found)) == [0, 1, 2, 3, 4, 6, 7, 9]
    assert found[f"{2:016x}"]["blended_prompt"] == "a dog"
    assert found[f"{2:016x}"]["quality"]["ghost"] == 1.5
    assert list(Corpus.open(corpus).overlay.values) == [f"{2:016x}"]  # nothing of what went


def test_compact_puts_corrections_into_the_shards(corpus: Path, table: Path) -> None:
    run_annotate(corpus, table)
    seen = list(Corpus.open(corpus).rows())
    assert run_compact(corpus, **QUIET).version == 3
    found = Corpus.open(corpus)
    assert found.version is not None and found.version.overlay == ()
    assert list(found.rows()) == seen
    assert [row["blended_prompt"] for row in Corpus.open(corpus, 1).rows()][2] == "disc 2, waves"
    batches = found.shard(0).batches(["blended_prompt"])  # as `datasets` reads it
    assert "a cat" in [text for b in batches for text in b.column("blended_prompt").to_pylist()]
    assert run_compact(corpus, **QUIET).version == 3


def test_pages_and_derived_and_published_corpora_have_the_new_values(
    corpus: Path, table: Path, tmp_path: Path
) -> None:
    run_annotate(corpus, table)
    shown = list(CorpusSource(corpus).rows())
    assert shown[2]["prompts"]["blended"] == "a cat" and shown[5]["scores"]["flicker"] == 0.75
    filter_corpus(Corpus.open(corpus), tmp_path / "few", where=["flicker>0.5"])
    (kept,) = Corpus.open(tmp_path / "few").rows()
    assert kept["id"] == f"{5:016x}" and kept["origin"]["licence"] == "CC0-1.0"
    options = PublishOptions("me/c", acknowledge_licences=True)
    run_publish(corpus, options, dry_run=tmp_path / "hub", **QUIET)
    assert list(PublishedCorpus.open(tmp_path / "hub").rows()) == list(Corpus.open(corpus).rows())
    assert "CC0-1.0" in (tmp_path / "hub/LICENSE.md").read_text()
    previews = pq.read_table(tmp_path / "hub/preview/train-00000.parquet").to_pylist()
    assert previews[2]["blended_prompt"] == "a cat" and previews[5]["flicker"] == 0.75


def test_latents_take_the_new_prompt_and_encode_no_picture_again(
    corpus: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = init_directory(tmp_path / "model", "tiny")
    how: dict[str, Any] = {"model": model, "size": (32, 48), "frames": 1, **QUIET}
    how["augment"] = encoding.Augment(flip=True)
    first = run_encode([corpus], out=tmp_path / "latents", **how)
    assert (first.clips, first.encoded, first.corrected) == (16, 8, 0)
    before = Latents.open(tmp_path / "latents")
    run_annotate(corpus, table)
    with monkeypatch.context() as patch:
        patch.setattr(encoding.Encoder, "clip", lambda *_: pytest.fail("a picture was encoded"))
        done = run_encode([corpus], out=tmp_path / "latents", **how)
        assert (done.clips, done.encoded, done.corrected) == (16, 0, 1)
        assert run_encode([corpus], out=tmp_path / "latents", **how).corrected == 0
    found = Latents.open(tmp_path / "latents")
    assert [found.prompt_text(found.column("blended_prompt")[i]) for i in (3, 4, 5)] == [
        "2, disc 1, waves",
        "2, a cat",
        "2, a cat",
    ]
    assert found.column("content")[4] != before.column("content")[4]
    assert not any(found.prompt_text(key) == "2, disc 2, waves" for key in found.prompt_keys())
    assert np.array_equal(found.item(4)["moments"], before.item(4)["moments"])
    fresh = run_encode([corpus], out=tmp_path / "fresh", **how)
    again = Latents.open(fresh.out)
    assert again.identity() == found.identity()
    for index in range(16):
        assert again.raw(index) == found.raw(index)


WRONG = {
    "id,colour\n1,red\n": "'colour' is nothing that can be corrected",
    "blended_prompt\nx\n": "has no column id",
    f"id,flicker\n{2:016x},much\n": "row 1: flicker 'much' is no number",
    f"id,flicker\n{2:016x},nan\n": "row 1: flicker is not finite",
    f"id,flicker\n{2:016x},1\n{2:016x},2\n": "row 2: the id",
    "id,flicker\nnobody,1\n": "1 ids are not in the corpus, such as 'nobody'",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_table_changes_nothing(text: str, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.csv").write_text(text)
    with pytest.raises(ValueError, match=WRONG[text]):
        run_annotate(corpus, tmp_path / "wrong.csv")
    assert open_corpus(corpus).address.endswith("@v1")


def test_a_removed_licence_cannot_be_given_to_a_clip(corpus: Path, tmp_path: Path) -> None:
    run_remove(corpus, Wanted(licences=["CC-BY-ND-4.0"]), **QUIET)
    (tmp_path / "new.csv").write_text(f"id,licence\n{0:016x},CC BY ND 4.0\n")
    with pytest.raises(ValueError, match="clips of this licence were removed on"):
        run_annotate(corpus, tmp_path / "new.csv")


def test_the_command_says_what_it_did(corpus: Path, table: Path) -> None:
    said = CliRunner().invoke(build_app(), ["annotate", str(corpus), "--table", str(table)]).output
    assert said.endswith(
        "version 2; 2 clips corrected: blended_prompt (1), flicker (1), licence (1)\n"
    )


@pytest.mark.slow
def test_a_correction_killed_at_any_moment_is_there_or_not(
    made: Path, table: Path, tmp_path: Path
) -> None:
    quiet = Path(shutil.copytree(made, tmp_path / "quiet"))
    run_annotate(quiet, table)
    for out in at_every_call(made, tmp_path, lambda out: run_annotate(out, table)):
        prompts = [row["blended_prompt"] for row in Corpus.open(out).rows(["blended_prompt"])]
        version = Corpus.open(out).version
        assert version is not None and (prompts[2] == "a cat") == (version.number == 2)
        run_annotate(out, table)
        assert files(out) == files(quiet)
