"""The corpus on disk: round trip, determinism, what datasets sees."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerflow.corpus.table import (
    REJECTED_SCHEMA,
    SCHEMA,
    Corpus,
    clip_id,
    decode_row,
    origin,
    quality_cell,
    rejected_row,
)
from layerflow.corpus.writer import write_table
from tests.support.corpus_rows import make_row


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [make_row(i) for i in range(6)] + [make_row(6, "image")]
    assert write_table(tmp_path / "c", iter(rows), SCHEMA, shard_bytes=30_000) == 7
    assert len(list((tmp_path / "c").glob("data-*.arrow"))) > 1
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.ids() == [row["id"] for row in rows]
    assert corpus.row(3)["foreground"] == rows[3]["foreground"]
    assert corpus.row(2, ["id", "quality"])["quality"]["flicker"] == 0.25
    clip = corpus.clip(6)
    assert clip.kind == "image"
    assert np.array_equal(clip.recomposed(), clip.blended)
    assert clip.prompts["blended"] == "a dog in a yard"


def test_equal_rows_give_equal_files(tmp_path: Path) -> None:
    rows = [make_row(i) for i in range(5)]
    for name in "ab":
        write_table(tmp_path / name, iter(rows), SCHEMA, shard_bytes=30_000)
    first, second = (sorted((tmp_path / name).iterdir()) for name in "ab")
    assert [p.name for p in first] == [p.name for p in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_datasets_opens_it_with_the_designed_columns(tmp_path: Path) -> None:
    import datasets

    write_table(tmp_path / "c", [make_row(1), make_row(2)], SCHEMA)
    opened = datasets.load_from_disk(str(tmp_path / "c"))
    assert opened.column_names == SCHEMA.names
    assert opened[1]["alpha"] == make_row(2)["alpha"]
    assert opened.features["quality"]["flicker"].dtype == "float32"


def test_a_corpus_without_rows_has_one_empty_shard(tmp_path: Path) -> None:
    import datasets

    write_table(tmp_path / "c", [], SCHEMA)
    assert len(Corpus.open(tmp_path / "c")) == 0
    assert len(datasets.load_from_disk(str(tmp_path / "c"))) == 0


def test_rejected_rows_have_their_own_table(tmp_path: Path) -> None:
    write_table(tmp_path / "c", [make_row(0)], SCHEMA)
    row = rejected_row("a.mp4", "gate", "too small", kind="mined", recipe="r")
    write_table(tmp_path / "c" / "rejected", [row], REJECTED_SCHEMA)
    assert Corpus.open(tmp_path / "c").rejected()[0]["reason"] == "too small"


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no corpus"):
        Corpus.open(tmp_path)
    with pytest.raises(ValueError, match="unknown quality"):
        quality_cell({"beauty": 1.0})
    with pytest.raises(ValueError, match="relative"):
        origin("/home/me/a.mp4", "ab")
    write_table(tmp_path / "c", [make_row(0)], SCHEMA)
    shard = next((tmp_path / "c").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read"):
        Corpus.open(tmp_path / "c")


def test_a_state_file_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_table(tmp_path / "secret", [make_row(0)], SCHEMA)
    write_table(tmp_path / "c", [], SCHEMA)
    state = tmp_path / "c" / "state.json"
    outside = "../secret/data-00000-of-00001.arrow"
    state.write_text(state.read_text().replace("data-00000-of-00001.arrow", outside))
    assert len(Corpus.open(tmp_path / "c")) == 0  # its own shard of that name, not the other


def test_ids_depend_on_everything_that_makes_a_clip() -> None:
    base = clip_id("mined", ["ab"], [0.0, 2.0], "r")
    assert len(base) == 16
    others = [
        clip_id("pasted", ["ab"], [0.0, 2.0], "r"),
        clip_id("mined", ["ac"], [0.0, 2.0], "r"),
        clip_id("mined", ["ab"], [0.0, 2.1], "r"),
        clip_id("mined", ["ab"], [0.0, 2.0], "s"),
    ]
    assert len({base, *others}) == 5


def test_a_corpus_is_a_sequence_of_clips(tmp_path: Path) -> None:
    rows = [make_row(i) for i in range(4)]
    write_table(tmp_path / "c", rows, SCHEMA)
    corpus = Corpus.open(tmp_path / "c")
    wanted = [decode_row(row).blended for row in rows]
    for found, frames in (
        (list(corpus), wanted),
        (corpus[3:1:-1], wanted[:1:-1]),
        ([corpus[-1]], wanted[3:]),
    ):
        assert len(found) == len(frames)
        assert all(np.array_equal(a.blended, b) for a, b in zip(found, frames, strict=True))
    for outside in (4, -5):
        with pytest.raises(IndexError):
            corpus[outside]


def test_a_notebook_shows_the_first_clips_and_names_a_damaged_one(tmp_path: Path) -> None:
    rows = [make_row(0), make_row(1) | {"blended": b"no film", "id": "<b>two"}]
    write_table(tmp_path / "c", rows, SCHEMA)
    shown = Corpus.open(tmp_path / "c")._repr_html_()
    assert "2 clips" in shown
    assert "&lt;b&gt;two cannot be read" in shown and "<b>two" not in shown
    picture = base64.b64decode(shown.split("base64,")[1].split('"')[0])
    assert Image.open(io.BytesIO(picture)).height > 100
