"""Attacks by tables, rows and the files beside them: what may be in them, and what must happen."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layerflow.corpus.derive import filter_corpus, merge_corpora, split_corpus
from layerflow.corpus.published import open_corpus
from layerflow.corpus.shards import read_shard
from layerflow.corpus.stats import stats
from layerflow.corpus.table import SCHEMA, Corpus
from layerflow.corpus.validate import check_folder, refuse_unsound, validate
from layerflow.media.opening import Bounds, MediaError
from pipelines.encode.clip_latents import Augment
from pipelines.encode.wanted import wanted_rows
from pipelines.publish.files import PublishOptions, make_plan
from pipelines.publish.tables import published, write_parquet
from tests.support.corpora import make_rejected, make_rows, write_corpus

SHARD = "data-00000-of-00001.arrow"
Attack = Callable[[Path], Any]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return make_rows(6)


def table_of(shard: Path) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(shard.read_bytes())).read_all()


def rewritten(
    change: Callable[[pa.Table], pa.Table] = lambda table: table, **options: Any
) -> Attack:
    def attack(path: Path) -> None:
        table = change(table_of(path / SHARD))
        how = pa.ipc.IpcWriteOptions(**options)
        with (
            pa.OSFile(str(path / SHARD), "wb") as file,
            pa.ipc.new_stream(file, table.schema, options=how) as writer,
        ):
            writer.write_table(table)

    return attack


def column(values: Callable[[int], Any], metadata: dict[str, str] | None = None) -> Attack:
    """A further column that holds ``values(rows)``."""

    def change(table: pa.Table) -> pa.Table:
        array = values(len(table))
        return table.append_column(pa.field("more", array.type, metadata=metadata), array)

    return rewritten(change)


def patched(old: Callable[[bytes], bytes], new: Callable[[bytes], bytes]) -> Attack:
    """The first such bytes of the shard become others."""

    def attack(path: Path) -> None:
        data = (path / SHARD).read_bytes()
        assert old(data) in data
        (path / SHARD).write_bytes(data.replace(old(data), new(data), 1))

    return attack


def offsets(*numbers: int) -> Callable[[bytes], bytes]:
    return lambda data: struct.pack(f"<{len(numbers)}i", *numbers)


def media_offsets(change: Callable[[list[int]], list[int]]) -> Attack:
    """The int64 offsets of the first batch's blended cells, changed."""

    def attack(path: Path) -> None:
        batch = next(iter(pa.ipc.open_stream(pa.py_buffer((path / SHARD).read_bytes()))))
        cells = batch.column("blended")
        found = list(memoryview(cells.buffers()[1]).cast("q")[: len(cells) + 1])
        old, new = (struct.pack(f"<{len(n)}q", *n) for n in (found, change(list(found))))
        patched(lambda _: old, lambda _: new)(path)

    return attack


def flipped(needle: Callable[[bytes], int]) -> Attack:
    def attack(path: Path) -> None:
        data = bytearray((path / SHARD).read_bytes())
        data[needle(bytes(data))] ^= 1
        (path / SHARD).write_bytes(data)

    return attack


def written(name: str, text: str) -> Attack:
    return lambda path: (path / name).write_text(text)


def state(**changes: Any) -> Attack:
    def attack(path: Path) -> None:
        held = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps({**held, **changes}))

    return attack


def cut(path: Path) -> None:
    data = (path / SHARD).read_bytes()
    (path / SHARD).write_bytes(data[: len(data) * 2 // 3])


def without(name: str) -> Attack:
    return rewritten(lambda table: table.drop_columns([name]))


def bomb(path: Path) -> None:
    """A few kilobytes of zeros that were gigabytes before they were packed."""
    big = pa.array([bytes(48 << 20)], pa.large_binary())

    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("blended")
        return table.slice(0, 1).set_column(place, "blended", big)

    rewritten(change, compression="zstd")(path)
    assert (path / SHARD).stat().st_size < 200_000


PLAIN = "no corpus has"
CHECKSUM = "checksum"
IDS = (0, 16, 32, 48, 64)
EXTENSION = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": "c\n."}
# The attack in a sentence; what it does to a corpus; what every job says of it.
TABLES: list[tuple[str, Attack, str]] = [
    ("a compressed shard that unpacks to a thousand times its size", bomb, "compressed"),
    ("a shard compressed with LZ4", rewritten(compression="lz4"), "compressed"),
    ("a dictionary whose values repeat for free",
     column(lambda n: pa.array(["x" * 9999] * n).dictionary_encode()), "dictionary"),
    ("a column of nulls, which takes no bytes a row", column(pa.nulls), PLAIN),
    ("views that all show the same long text",
     column(lambda n: pa.array(["x" * 9999] * n, pa.string_view())), PLAIN),
    ("a run length instead of values",
     column(lambda n: pa.RunEndEncodedArray.from_arrays([n], ["x" * 9999])), PLAIN),
    ("lists that all show the same values",
     column(lambda n: pa.array([[1]] * n, pa.list_view(pa.int8()))), PLAIN),
    ("values of no width", column(lambda n: pa.array([b""] * n, pa.binary(0))), PLAIN),
    ("an extension type of Arrow's own", column(lambda n: pa.array(["{}"] * n, pa.json_())),
     "extension"),
    ("an extension type that is a pickle",
     column(lambda n: pa.array(["x"] * n), EXTENSION), "extension"),
    ("an id whose offset goes back",
     patched(offsets(*IDS), offsets(0, 16, 2, 48, 64)), "[Oo]ffset"),
    ("an id whose offset is negative",
     patched(offsets(*IDS), offsets(0, -16, 32, 48, 64)), "[Oo]ffset"),
    ("an id whose offset lies behind its buffer",
     patched(offsets(*IDS), offsets(0, 16, 32, 48, 2**31 - 1)), "[Oo]ffset|[Ll]ength|range"),
    ("a media cell whose offset lies behind its buffer",
     media_offsets(lambda n: [*n[:-1], 2**40]), "[Oo]ffset|[Ll]ength|range"),
    ("a media cell whose offset is negative",
     media_offsets(lambda n: [n[0], -1, *n[2:]]), "[Oo]ffset"),
    ("a media cell that takes the next one's bytes, too",
     media_offsets(lambda n: [n[0], n[1] + 8, *n[2:]]), CHECKSUM),
    ("an id that is no text", patched(lambda _: b"0000000000000001", lambda _: b"\xff" * 16),
     "UTF8|utf-8"),
    ("one flipped bit in a media cell", flipped(lambda data: data.index(b"mdat") + 400), CHECKSUM),
    ("one flipped bit in a prompt", flipped(lambda data: data.index(b"disc 0")), CHECKSUM),
    ("a shard that is cut off", cut, "cannot be read"),
    ("a shard that is no Arrow at all", written(SHARD, "ffconcat version 1.0\nfile a.mp4\n"),
     "cannot be read"),
    ("a table without a column", without("alpha_kind"), "no column"),
    ("a state that names a file of another folder",
     state(_data_files=[{"filename": "../../secret.arrow"}]), "secret.arrow"),
    ("a state that names no shard", state(_data_files=[]), "no shard"),
    ("a state that names the folder itself", state(_data_files=[{"filename": ".."}]), "cannot be"),
    ("a state of other types", state(_data_files={"filename": 3}), "cannot be read"),
    ("a state that is nested without end", written("state.json", "[" * 100_000), "cannot be read"),
    ("a description of columns that is nested without end",
     written("dataset_info.json", '{"features":' * 100_000), "nested too deep"),
    ("a corpus.json that is a list", written("corpus.json", "[1]"), "list"),
    ("a corpus.json that is nested without end",
     written("corpus.json", '{"a":' * 100_000), "corpus.json"),
    ("a corpus.json whose numbers are texts",
     written("corpus.json", '{"state": "complete", "rows": "../../etc"}'), "corpus.json"),
    ("a corpus that is not finished", written("corpus.json", '{"state": "running"}'), "running"),
    ("a rejected table that is damaged",
     lambda path: cut(path / "rejected"), "rejected"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "attack", "said"), TABLES, ids=[t[0] for t in TABLES])
def test_every_job_refuses_what_validate_refuses(
    what: str, attack: Attack, said: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = write_corpus(tmp_path / "corpus", rows, make_rejected())
    attack(path)
    assert any(in_text(said, str(problem)) for problem in validate(path))
    jobs: list[Callable[[], Any]] = [
        lambda: list(wanted_rows([str(path)], Augment())),
        lambda: make_plan(path, PublishOptions("me/it"), workers=0),
        lambda: merge_corpora([Corpus.open(path)], tmp_path / "out"),
        lambda: filter_corpus(Corpus.open(path), tmp_path / "out", where=["ghost>1"]),
        lambda: split_corpus(Corpus.open(path), tmp_path / "out", {"a": 0.5, "b": 0.5}),
    ]
    for job in jobs:
        with pytest.raises(ValueError) as refused:
            job()
        assert in_text(said, str(refused.value)) and len(str(refused.value)) < 1500
    assert [found.name for found in tmp_path.iterdir()] == ["corpus"]  # nothing half made


def in_text(pattern: str, text: str) -> bool:
    import re

    return re.search(pattern, text) is not None


@pytest.mark.parametrize("what", ["bomb", "views", "offsets"])
def test_statistics_of_a_hostile_shard_are_an_error_before_it_is_unpacked(
    what: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = write_corpus(tmp_path / "corpus", rows)
    attacks = {"bomb": TABLES[0][1], "views": TABLES[4][1], "offsets": TABLES[12][1]}
    corpus = Corpus.open(path)  # opened while it was sound
    attacks[what](path)
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="cannot be read"):
        stats(corpus)
    assert pa.total_allocated_bytes() - before < 1 << 20


def changed(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update(values)


ROWS: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("an id that is a path", changed(id="../../etc/passwd"), "hex digits"),
    ("an id that is a script", changed(id="<script>alert(1)"), "hex digits"),
    ("more frames than any clip", changed(num_frames=2**31 - 1), "GiB"),
    ("a negative number of frames", changed(num_frames=-1), "not positive"),
    ("a picture of no height", changed(height=0), "not positive"),
    ("frames of a terabyte", changed(height=2**20, width=2**20), "GiB"),
    ("a rate without end", changed(fps=float("inf")), "not positive"),
    ("a kind that is a path", changed(kind="../x"), "none of"),
    ("no origin", changed(origin=None), "no value"),
    ("no media cell", changed(foreground=None), "empty"),
]


@pytest.mark.parametrize(("what", "change", "said"), ROWS, ids=[r[0] for r in ROWS])
def test_no_job_takes_a_row_of_nonsense(
    what: str, change: Callable[[dict[str, Any]], None], said: str,
    rows: list[dict[str, Any]], tmp_path: Path,
) -> None:  # fmt: skip
    bad = dict(rows[0])
    change(bad)
    path = write_corpus(tmp_path / "corpus", [rows[1], bad])
    assert [said in problem.what for problem in validate(path)] == [True]
    with pytest.raises(ValueError, match=said):
        merge_corpora([Corpus.open(path)], tmp_path / "merged")
    with pytest.raises(ValueError, match=said):
        make_plan(path, PublishOptions("me/it"), workers=0)
    if bad["origin"] is not None:
        kept = filter_corpus(Corpus.open(path), tmp_path / "kept", where=["height>=0"])
        assert kept.rows == 1 and validate(kept.out) == []


def test_numbers_of_a_row_bound_what_its_cells_may_hold() -> None:
    good = {"num_frames": 5, "height": 32, "width": 48}
    assert Bounds.of(good) == Bounds(5, 32, 48)
    for name, value in (("num_frames", 10**6), ("height", 10**7), ("width", None), ("height", -3)):
        with pytest.raises(MediaError, match="the row says"):
            Bounds.of({**good, name: value})


def test_a_corpus_made_before_some_scores_were_added_stays_readable(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    from layerflow.corpus.writer import write_table

    fewer = pa.struct(list(SCHEMA.field("quality").type)[:5])
    place = SCHEMA.get_field_index("quality")
    schema = SCHEMA.set(place, pa.field("quality", fewer))
    old = [{**row, "quality": {f.name: row["quality"][f.name] for f in fewer}} for row in rows]
    write_table(tmp_path / "old", old, schema)
    assert [problem.field for problem in validate(tmp_path / "old")] == ["corpus.json"]
    made = filter_corpus(Corpus.open(tmp_path / "old"), tmp_path / "new", where=["height>1"])
    assert made.rows == len(rows) and validate(made.out) == []


def test_a_shard_is_hashed_once_and_again_when_it_changes(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerflow.corpus import validate

    read: list[str] = []

    def counting(path: Path) -> str:
        read.append(path.name)
        return hashed(path)

    hashed = validate.file_sha256
    monkeypatch.setattr(validate, "file_sha256", counting)
    path = write_corpus(tmp_path / "corpus", rows[:2])
    for _ in range(3):
        refuse_unsound(Corpus.open(path))
    assert read.count(SHARD) == 2  # rows and rejected rows
    flipped(lambda data: data.index(b"mdat") + 400)(path)
    with pytest.raises(ValueError, match=CHECKSUM):
        refuse_unsound(Corpus.open(path))


# ---- published corpora ------------------------------------------------------------------------


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    media = ["foreground", "alpha", "background", "blended"]
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([pa.field(f.name, cell) if f.name in media else f for f in SCHEMA])
    file = path / "data" / "train-00000-of-00001.parquet"
    write_parquet(file, schema, iter([published(batch, schema)]), media)
    return file


def test_a_published_corpus_is_checked_whole_in_a_child(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = parquet(tmp_path / "good", rows)
    assert check_folder(tmp_path / "good") == []
    data = bytearray(file.read_bytes())
    data[data.index(b"mdat") + 400] ^= 1
    parquet(tmp_path / "bad", rows).write_bytes(data)
    said = [str(problem) for problem in check_folder(tmp_path / "bad")]
    assert len(said) == 1 and "CRC" in said[0]
    with pytest.raises(ValueError, match="CRC"):
        merge_corpora([open_corpus(tmp_path / "bad")], tmp_path / "out")
    with pytest.raises(ValueError, match="CRC"):
        list(wanted_rows([str(tmp_path / "bad")], Augment()))


def test_a_published_dictionary_that_unpacks_without_end_ends_the_child_only(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerflow.corpus import validate

    monkeypatch.setattr(validate, "PARQUET_MEMORY", 2 << 30)
    file = parquet(tmp_path / "bomb", [{**rows[0], "blended": b"x", "foreground": b"x"}])
    table = pq.read_table(file).take(pa.array([0] * 5000))
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["x" * 900_000])
    place = table.schema.get_field_index("foreground_prompt")
    table = table.set_column(place, "foreground_prompt", texts)
    pq.write_table(table, file, store_schema=False, dictionary_pagesize_limit=1 << 20)
    assert file.stat().st_size < 2 << 20
    said = [str(problem) for problem in check_folder(tmp_path / "bomb")]
    assert len(said) == 1 and "cannot be unpacked" in said[0]


def test_shards_are_read_without_a_copy(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "corpus", rows)
    before = pa.total_allocated_bytes()
    batches = list(read_shard(path / SHARD))
    assert sum(batch.num_rows for batch in batches) == len(rows)
    assert pa.total_allocated_bytes() - before < 100_000
