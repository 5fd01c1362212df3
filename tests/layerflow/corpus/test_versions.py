"""The log of a corpus: versions that stay, rows found by bisection, files of strangers."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus import log
from layerflow.corpus.derive import merge_corpora
from layerflow.corpus.published import open_corpus
from layerflow.corpus.shards import ShardReader
from layerflow.corpus.store import Store
from layerflow.corpus.table import SCHEMA, Corpus, Table
from layerflow.corpus.writer import logged, settle, write_shard, write_table
from tests.support.corpora import make_rows, write_corpus
from tests.support.corpus_rows import make_row


def small(index: int) -> dict[str, Any]:
    """A row whose media cells are no media: what is measured is where it lies."""
    row = make_row(0)
    cells = {name: f"{name} {index}".encode() for name in ("foreground", "alpha", "background")}
    return {**row, **cells, "id": f"{index:016x}"}


def test_every_row_is_found_whatever_the_cuts_of_shards_and_batches(tmp_path: Path) -> None:
    base = [small(index) for index in range(23)]
    write_table(tmp_path / "c", base, SCHEMA, shard_bytes=3000)
    corpus = Corpus.open(tmp_path / "c")
    assert len(corpus.shards) > 3 and len(corpus) == 23
    order = list(range(23))
    random.Random(0).shuffle(order)
    assert [corpus.row(index, ["id"])["id"] for index in order] == [base[i]["id"] for i in order]
    assert [corpus.row(index) for index in (22, 0, 7)] == [base[i] for i in (22, 0, 7)]
    assert list(corpus.rows()) == base
    with pytest.raises(IndexError, match="row 23 of 23"):
        corpus.row(23)


def test_columns_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    rows = [{**small(index), "foreground": b"x" * 300_000} for index in range(8)]
    write_table(tmp_path / "c", rows, SCHEMA)
    (name,) = (path.name for path in (tmp_path / "c").glob("*.arrow"))

    class Counting(Store):
        """A folder that is read as an object store is: by ranges."""

        count = 0

        def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
            data = (tmp_path / "c" / name).read_bytes()[start:end]
            Counting.count += len(data)
            return data

    store = Counting("s3://nowhere/c")
    reader = ShardReader(store, name)
    wanted = ["id", "foreground_prompt", "origin", "quality"]
    found = [row for batch in reader.batches(wanted) for row in batch.to_pylist()]
    assert found == [{name: row[name] for name in wanted} for row in rows]
    assert Counting.count < 200_000  # of 2.4 MB
    assert reader.batch(1).to_pylist() == rows[4:]


def test_a_damaged_byte_anywhere_is_an_error_with_the_file_s_name_or_no_error(
    tmp_path: Path,
) -> None:
    write_table(tmp_path / "c", [small(index) for index in range(3)], SCHEMA)
    (shard,) = (tmp_path / "c").glob("*.arrow")
    whole, draw = shard.read_bytes(), random.Random(1)
    refused = 0
    for _ in range(250):
        data = bytearray(whole)
        data[draw.randrange(len(data))] = draw.randrange(256)
        shard.write_bytes(data)
        try:
            list(Corpus.open(tmp_path / "c").batches())
        except ValueError as error:
            refused += 1
            assert shard.name in str(error) or "no column" in str(error) or "column" in str(error)
    assert 0 < refused < 250


def grown(folder: Path) -> Corpus:
    """Two versions: rows 0 to 4, then 5 to 7 as well."""
    write_table(folder, [small(index) for index in range(5)], SCHEMA)
    (folder / "corpus.json").write_text(json.dumps({"state": "complete", "rows": 5}))
    store = Store(folder)
    first = logged(folder, "made", {"state": "complete", "rows": 5})
    assert log.commit(store, first)
    batch = pa.RecordBatch.from_pylist([small(index) for index in range(5, 8)], schema=SCHEMA)
    shard = write_shard(store, [batch], SCHEMA)
    info = {"state": "complete", "rows": 8}
    second = first.next("grown", shards=(*first.shards, shard), info=info)
    assert log.commit(store, second)
    settle(store, second, SCHEMA, SCHEMA)
    return Corpus.open(folder)


def test_each_version_stays_as_it_was_and_the_newest_is_what_is_opened(tmp_path: Path) -> None:
    corpus = grown(tmp_path / "c")
    assert [int(id, 16) for id in corpus.ids()] == list(range(8))
    for first in (Corpus.open(tmp_path / "c", 1), open_corpus(f"{tmp_path}/c@v1")):
        assert [int(id, 16) for id in first.ids()] == list(range(5))
        assert first.info["rows"] == 5
    assert corpus.address == f"{tmp_path}/c@v2"
    with pytest.raises(ValueError, match="there is no version 3; there are 1 to 2"):
        Corpus.open(tmp_path / "c", 3)


def test_datasets_opens_the_newest_version(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    grown(tmp_path / "c")
    found = datasets.load_from_disk(str(tmp_path / "c"))
    assert [int(id, 16) for id in found["id"]] == list(range(8))


def test_a_corpus_without_a_log_is_at_version_1(tmp_path: Path) -> None:
    write_table(tmp_path / "c", [small(0)], SCHEMA)
    assert Corpus.open(tmp_path / "c", 1).ids() == Corpus.open(tmp_path / "c").ids()
    with pytest.raises(ValueError, match="there is no version 2"):
        Corpus.open(tmp_path / "c", 2)
    (tmp_path / "d@v7").mkdir()
    write_table(tmp_path / "d@v7", [small(1)], SCHEMA)  # a folder of that very name
    assert Corpus.open(tmp_path / "d@v7").ids() == [f"{1:016x}"]


def test_of_two_writers_of_one_version_one_wins(tmp_path: Path) -> None:
    corpus = grown(tmp_path / "c")
    assert corpus.version is not None
    before = (tmp_path / "c/versions/000002.json").read_bytes()
    assert not log.commit(Store(tmp_path / "c"), corpus.version)
    assert (tmp_path / "c/versions/000002.json").read_bytes() == before
    assert log.commit(Store(tmp_path / "c"), corpus.version.next("third"))
    left = {path.name for path in (tmp_path / "c/versions").iterdir()}
    assert left == {"000001.json", "000002.json", "000003.json"}


def test_keys_that_this_version_does_not_know_are_kept(tmp_path: Path) -> None:
    grown(tmp_path / "c")
    path = tmp_path / "c/versions/000002.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colours": ["abc"]}))
    found = log.newest(Store(tmp_path / "c"))
    assert found is not None
    log.commit(Store(tmp_path / "c"), found.next("more"))
    assert json.loads((tmp_path / "c/versions/000003.json").read_text())["colours"] == ["abc"]


LIES: dict[str, Any] = {
    "a path out of the folder": lambda v: v["shards"][0].update(file="../../secret.arrow"),
    "a hidden file": lambda v: v["shards"][0].update(file=".inputs.json"),
    "rows that are no number": lambda v: v["shards"][0].update(rows="5"),
    "fewer rows than there are": lambda v: v["shards"][0].update(rows=4),
    "a sum that is none": lambda v: v["shards"][0].update(sha256="../"),
    "no shards": lambda v: v.update(shards=[]),
    "shards that are no list": lambda v: v.update(shards=3),
    "another version": lambda v: v.update(version=7),
    "a list of units elsewhere": lambda v: v.update(done=["../../done.txt"]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_log_that_lies_is_refused_with_its_name(lie: str, tmp_path: Path) -> None:
    grown(tmp_path / "c")
    path = tmp_path / "c/versions/000002.json"
    content = json.loads(path.read_text())
    LIES[lie](content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="cannot be read"):
        list(Corpus.open(tmp_path / "c").rows())


def test_validate_compares_shards_and_sidecars_with_the_log(tmp_path: Path) -> None:
    def problems(path: Path, *more: str) -> str:
        words = ["validate", str(path), "--workers=0", "--all", *more]
        return CliRunner().invoke(build_app(), words).output

    corpus = grown(tmp_path / "c")
    state = (tmp_path / "c/state.json").read_text()
    (tmp_path / "c/state.json").write_text(state.replace(corpus.shards[1].file, "gone.arrow"))
    assert "state.json: is not of version 2" in problems(tmp_path / "c")
    assert "is not of version" not in problems(tmp_path / "c", "--version", "1")
    (tmp_path / "c/state.json").write_text(state)
    (tmp_path / "c/stray.arrow").write_bytes(b"")
    assert "does not name the shards ['stray.arrow']" in problems(tmp_path / "c")
    (tmp_path / "c/stray.arrow").unlink()
    shard = tmp_path / "c" / corpus.shards[1].file
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b"foreground 6", b"foreground 9"))
    assert f"the checksum of {shard.name}" in problems(tmp_path / "c")


def test_the_log_is_told(tmp_path: Path) -> None:
    grown(tmp_path / "c")
    said = CliRunner().invoke(build_app(), ["log", str(tmp_path / "c")]).output.splitlines()
    assert said[0].startswith("version 1  made: 5 rows in 1 shards, ")
    assert said[2].startswith("version 2  grown: 8 rows in 2 shards, ")
    assert said[3].startswith("  + 3 rows in 1 shards")
    shutil.rmtree(tmp_path / "c/versions")
    assert "no log yet" in CliRunner().invoke(build_app(), ["log", str(tmp_path / "c")]).output


def test_a_version_can_be_merged_and_the_result_has_a_log(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", make_rows(3))
    assert log.commit(Store(tmp_path / "c"), logged(tmp_path / "c", "made", {"state": "complete"}))
    merge_corpora([open_corpus(f"{tmp_path}/c@v1")], tmp_path / "m")
    merged = Corpus.open(tmp_path / "m")
    assert merged.version is not None and merged.version.step == "merge"
    assert list(merged.rows()) == list(Corpus.open(tmp_path / "c").rows())
    assert isinstance(merged.rejected_table(), Table)
