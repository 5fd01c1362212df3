"""Which row lies in which file, from one version of a publication to the next."""

from __future__ import annotations

import numpy as np
import pytest

from layerflow.corpus.splits import assign
from pipelines.publish.layout import (
    Publication,
    Sent,
    file_key,
    file_name,
    lay_out,
    next_tag,
    patterns,
)


def laid(ids: list[int], before: Publication | None = None, limit: int = 30) -> Publication:
    """Rows of 10 bytes each, of one split."""
    numbers = np.asarray(ids, np.uint64)
    splits = {"train": np.arange(len(ids))}
    return Publication(
        tuple(lay_out(numbers, splits, np.full(len(ids), 10), limit, before)),
        {"README.md": Sent(3, "0" * 64, "1" * 40)},
        "v1",
        2,
    )


def held(found: Publication) -> dict[int, list[int]]:
    return {part.number: part.ids.tolist() for part in found.parts}


def test_rows_stay_and_new_ones_come_after() -> None:
    first = laid([1, 2, 3, 4, 5])
    assert held(first) == {0: [1, 2, 3], 1: [4, 5]}
    grown = laid([1, 2, 9, 3, 4, 5, 8], first)
    assert held(grown) == {0: [1, 2, 3], 1: [4, 5], 2: [9, 8]}
    fewer = laid([1, 9, 8, 7, 6, 10, 11], grown)
    assert held(fewer) == {0: [1], 2: [9, 8], 3: [7, 6, 10], 4: [11]}


def test_a_record_is_read_as_it_was_written() -> None:
    written = laid([5, 1, 2**63 + 1, 7])
    found = Publication.parse(written.text(), written.id_bytes(), "x")
    assert held(found) == held(written) and found.text() == written.text()
    with pytest.raises(ValueError, match="ids are of another publication"):
        Publication.parse(written.text(), written.id_bytes()[8:], "x")
    with pytest.raises(ValueError, match="its format is 2"):
        text = written.text().replace(b'"format_version": 1', b'"format_version": 2')
        Publication.parse(text, written.id_bytes(), "x")


def test_a_key_changes_with_rows_shards_and_values() -> None:
    rows, firsts = np.asarray([1, 2, 12]), [0, 10]
    keys = {
        file_key(rows, firsts, ["a", "b"], {}, "s"),
        file_key(rows[:2], firsts, ["a", "b"], {}, "s"),
        file_key(rows, firsts, ["a", "c"], {}, "s"),
        file_key(rows, firsts, ["a", "b"], {"1": {"flicker": 0.5}}, "s"),
        file_key(rows, firsts, ["a", "b"], {}, "t"),
    }
    assert len(keys) == 5
    assert file_key(rows[:2], firsts, ["a", "b"], {}, "s") == file_key(
        rows[:2], firsts, ["a", "z"], {}, "s"
    )


def test_a_folder_holds_a_thousand_files() -> None:
    names = [file_name("data", "train", n) for n in range(2500)]
    folders = [name.rpartition("/")[0] for name in names]
    assert max(folders.count(folder) for folder in set(folders)) == 1000
    assert names[999:1001] == ["data/train-00999.parquet", "data/more-001/train-01000.parquet"]
    assert patterns("data", "train", names[:9]) == ["data/train-*.parquet"]
    assert patterns("data", "train", names)[1] == "data/more-*/train-*.parquet"


def test_tags_only_rise() -> None:
    assert next_tag([], None) == "v1" and next_tag([], 3) == "v3"
    assert next_tag(["v3", "first", "v2"], 3) == "v4" and next_tag(["v1"], 7) == "v7"


def test_published_clips_keep_their_split() -> None:
    def row(number: int, source: str) -> dict[str, object]:
        origin = {"uri": source, "sha256": "", "parents": []}
        return {"id": f"{number:016x}", "kind": "mined", "origin": origin}

    rows = [row(n, f"{n // 2}.mp4") for n in range(20)]
    shares = {"train": 0.5, "test": 0.5}
    first = assign(rows, shares).names
    more = [*rows, *(row(n, f"{n // 9}.mp4 more") for n in range(20, 60))]
    kept: list[str | None] = [*first, *[None] * 40]
    again = assign(more, shares, kept=kept).names
    assert again[:20] == first and {*again[20:]} == {"train", "test"}
    assert assign(more, shares).names[:20] != first
