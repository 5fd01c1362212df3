"""A published corpus read as a local one: equal rows, only what is asked for, clear refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layerflow.corpus.derive import filter_corpus, merge_corpora, split_corpus
from layerflow.corpus.published import PublishedCorpus, fetched, open_corpus
from layerflow.corpus.stats import small_rows
from layerflow.corpus.table import SCHEMA, Corpus
from layerflow.corpus.validate import check_rows
from layerflow.media.cells import MediaError
from layerflow.model.presets import init_directory
from pipelines.encode.job import run_encode
from pipelines.publish import tables as publish_tables
from pipelines.publish.files import PublishOptions
from pipelines.publish.job import run_publish
from tests.support.corpora import make_rows, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("published") / "corpus", make_rows(12))


@pytest.fixture(scope="module")
def folder(corpus: Path) -> Path:
    out = corpus.parent / "hub"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish_tables, "GROUP_ROWS", 3)
        patch.setattr("pipelines.publish.files.SHARD_BYTES", 60_000)
        run_publish(corpus, PublishOptions("me/discs"), dry_run=out, workers=0, quiet=True)
    assert len(list((out / "data").iterdir())) > 1
    return out


@pytest.mark.parametrize("named", ["", "data", "data/train-*.parquet"])
def test_rows_are_those_of_the_local_corpus(corpus: Path, folder: Path, named: str) -> None:
    found, local = open_corpus(folder / named), Corpus.open(corpus)
    assert isinstance(found, PublishedCorpus) and found.schema.equals(local.schema)
    assert list(found.rows()) == list(local.rows()) and found.row(7) == local.row(7)
    assert list(small_rows(found)) == list(small_rows(local))
    assert isinstance(open_corpus(corpus), Corpus)


def test_columns_are_read_without_media(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []
    read = pq.ParquetFile.read_row_group

    def spy(self: Any, group: int, columns: Sequence[str]) -> pa.Table:
        asked.append(set(columns))
        return read(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    found = open_corpus(folder)
    assert len(found.ids()) == 12 and set().union(*asked) == {"id"}
    asked.clear()
    filter_corpus(found, folder.parent / "few", where=["ghost>10"])
    whole = [columns for columns in asked if "blended" in columns]
    assert len(whole) == 1 and len(asked) > 4  # of all row groups, one has rows that stay


def test_corpora_are_derived_from_published_ones(
    corpus: Path, folder: Path, tmp_path: Path
) -> None:
    found, local = open_corpus(folder), Corpus.open(corpus)
    for name, source in (("a", found), ("b", local)):
        made = filter_corpus(source, tmp_path / name, where=["kind!=image"])
        assert (made.rows, made.left_out) == (8, 4)
        assert filter_corpus(source, tmp_path / name, where=["kind!=image"]) == made  # does nothing
    assert list(Corpus.open(tmp_path / "a").rows()) == list(Corpus.open(tmp_path / "b").rows())
    merge_corpora([found, Corpus.open(tmp_path / "a")], tmp_path / "m")
    assert Corpus.open(tmp_path / "m").ids() == local.ids()
    made_from = Corpus.open(tmp_path / "m").info["made_from"]
    assert [parent["name"] for parent in made_from] == ["hub", "a"]
    parts, _ = split_corpus(found, tmp_path / "s", {"train": 0.5, "test": 0.5})
    assert sum(part.rows for part in parts.values()) == 12


def test_encode_takes_it_for_the_same_corpus(corpus: Path, folder: Path, tmp_path: Path) -> None:
    model = init_directory(tmp_path / "model", "tiny")
    options: dict[str, Any] = {"model": model, "out": tmp_path / "latents", "size": (32, 48)}
    options |= {"frames": 4, "workers": 0, "quiet": True}
    assert run_encode([folder], **options).encoded == 12
    assert run_encode([corpus], **options).encoded == 0  # same ids, same content


def test_rows_are_checked_in_child_processes(folder: Path) -> None:
    reports = list(check_rows(open_corpus(folder), workers=1, indices=[0, 5, 11]))
    assert [len(report.problems) for report in reports] == [0, 0, 0]


def write(path: Path, change: Any) -> Path:
    rows = change([{**row} for row in make_rows(2)])
    schema = pa.schema([field for field in SCHEMA if field.name in rows[0]])
    for number, field in enumerate(schema):
        if field.name in ("foreground", "blended"):
            schema = schema.set(number, pa.field(field.name, publish_tables.MEDIA))
    path.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema), path / "train-00000-of-00001.parquet")
    return path


def paths_only(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        row |= {name: {"bytes": None, "path": "/etc/passwd"} for name in ("foreground", "blended")}
    return rows


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    short = write(tmp_path / "a", lambda rows: [{k: v for k, v in r.items() if k != "alpha"
                                                 and k not in ("foreground", "blended")}
                                                for r in rows])  # fmt: skip
    with pytest.raises(ValueError, match="no column"):
        open_corpus(short)
    linked = open_corpus(write(tmp_path / "b", paths_only))
    assert linked.ids() == ["0000000000000000", "0000000000000001"]
    with pytest.raises(MediaError, match="holds no bytes"):  # a path is never followed
        linked.row(0)
    with pytest.raises(IndexError):
        linked.row(2)
    with pytest.raises(ValueError, match="no corpus"):
        open_corpus(tmp_path)


@pytest.mark.parametrize(
    "url",
    ["hf://me/x", "hf://datasets/x", "hf://datasets/../x", "hf://datasets/a/b/../../c", "hf://"],
)
def test_bad_addresses(url: str) -> None:
    with pytest.raises(ValueError, match="is no hf://datasets/"):
        fetched(url)


def test_offline_is_said() -> None:
    with pytest.raises(ValueError, match="hf://datasets/me/none: is not in the cache"):
        fetched("hf://datasets/me/none")
