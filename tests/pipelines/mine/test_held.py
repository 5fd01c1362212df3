"""What corpora hold already is not mined again: of others, and of the one that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from layerflow.clip import U8
from layerflow.corpus.published import open_corpus
from layerflow.corpus.table import Corpus
from pipelines.mine.held import held_units
from pipelines.mine.job import run_mine
from pipelines.mine.survey import covered
from tests.support.mined import options, write_video

GATE = {"gate": "off", "thresholds": {"duplicate_distance": [1.0, 1e9]}}
HERE: dict[str, Any] = {"workers": 0, "quiet": True}


def pan(seed: int) -> list[U8]:
    texture = np.random.default_rng(seed).integers(0, 255, (12, 40, 3), np.uint8)
    wide = cv2.resize(texture, (426, 128))
    return [np.ascontiguousarray(wide[16:112, 9 * t : 9 * t + 128]) for t in range(10)]


def graded(pictures: list[U8]) -> list[U8]:
    """Scaled, brighter, and with more to the left and right than a clip of 96x128 shows."""
    wide = [cv2.copyMakeBorder(p, 0, 0, 20, 20, cv2.BORDER_REFLECT_101) for p in pictures]
    return [cv2.resize(np.clip(p * 0.95 + 12, 0, 255).astype(np.uint8), (252, 144)) for p in wide]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`first` holds a film and `mined` its clip; `more` the film again and another one."""
    root = tmp_path_factory.mktemp("held")
    for name in ("first", "more"):
        (root / name).mkdir()
    write_video(root / "first/a.mp4", pan(0))
    write_video(root / "more/a.mp4", graded(pan(0)), crf=30)
    write_video(root / "more/b.mp4", pan(1))
    run_mine(options(root / "first", root / "mined", **GATE), **HERE)
    assert len(Corpus.open(root / "mined")) == 1
    return root


def kept_and_why_not(out: Path) -> tuple[list[str], dict[str, str]]:
    corpus = Corpus.open(out)
    refused = {row["uri"]: row["reason"] for row in corpus.rejected()}
    return [row["origin"]["uri"] for row in corpus.rows(["origin"])], refused


def test_clips_of_another_corpus_are_not_repeated(folder: Path, tmp_path: Path) -> None:
    held = folder / "mined"
    for against, kept in (([], ["a.mp4", "b.mp4"]), ([str(held)], ["b.mp4"])):
        out = tmp_path / f"out{len(against)}"
        run_mine(options(folder / "more", out, against=against, **GATE), **HERE)
        found, refused = kept_and_why_not(out)
        assert found == kept
        if against:
            assert refused == {"a.mp4": "nearly the same as clip 0 of mined@v1"}
    assert open_corpus(tmp_path / "out0").info["recipe"] == Corpus.open(out).info["recipe"]


def test_clips_of_another_shape_are_not_compared(folder: Path, tmp_path: Path) -> None:
    asked = {"against": [str(folder / "mined")], **GATE, "size": "96x96"}
    run_mine(options(folder / "more", tmp_path / "out", **asked), **HERE)
    assert kept_and_why_not(tmp_path / "out") == (["a.mp4", "b.mp4"], {})


def test_what_is_added_does_not_repeat_what_is_there(folder: Path, tmp_path: Path) -> None:
    """The same film under its own name is of one input, under another it is not."""
    out = tmp_path / "out"
    run_mine(options(folder / "first", out, **GATE), **HERE)
    (tmp_path / "next").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "next" / f"new-{name}").write_bytes((folder / "more" / name).read_bytes())
    summary = run_mine(options(tmp_path / "next", out, **GATE), append=True, **HERE)
    found, refused = kept_and_why_not(out)
    assert summary.added == 1 and found == ["a.mp4", "new-b.mp4"]
    assert list(refused) == ["new-a.mp4"] and "nearly the same as clip 0" in refused["new-a.mp4"]


def test_a_corpus_that_is_none_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    asked = options(folder / "more", tmp_path / "out", against=[str(tmp_path)], **GATE)
    with pytest.raises(ValueError, match="no corpus"):
        run_mine(asked, **HERE)
    assert not (tmp_path / "out").exists()


def test_units_of_a_corpus_cover_its_rows_and_change_with_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (unit,) = held_units([str(folder / "mined"), str(folder / "mined")])
    assert unit.payload["rows"] == [0, 1] and not unit.payload["own"]
    (own,) = held_units([], str(folder / "mined"))
    assert own.payload["own"]


def test_what_a_clip_would_show_is_the_middle() -> None:
    pictures = np.arange(2 * 4 * 10 * 3, dtype=np.uint8).reshape(2, 4, 10, 3)
    assert np.array_equal(covered(pictures, 96, 144), pictures[:, :, 2:8])
    assert np.array_equal(covered(pictures, 40, 100), pictures)
    assert np.array_equal(covered(pictures, 10, 100), pictures[:, 1:2])  # 1 of 4 rows
