"""The table of columns: what stats, view and filters take from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerflow.corpus.columns import COLUMNS, EXTENDED_SCHEMA, SCHEMA, small_columns
from layerflow.corpus.derive import filter_corpus
from layerflow.corpus.row_check import check_row
from layerflow.corpus.stats import small_rows, stats
from layerflow.corpus.table import Corpus
from layerflow.corpus.writer import write_table
from pipelines.view.source import shown_row
from tests.support.corpus_rows import make_row


def row(index: int, **change: Any) -> dict[str, Any]:
    made = make_row(index)
    made["origin"]["sha256"] = "ab" * 32
    return made | change


@pytest.fixture
def shaded(tmp_path: Path) -> Corpus:
    """Three clips with columns beyond the layers: two say who owns the shadow."""
    rows = [row(i, shadow=shadow) for i, shadow in enumerate(("none", None, "none"))]
    write_table(tmp_path / "shaded", rows, EXTENDED_SCHEMA)
    return Corpus.open(tmp_path / "shaded")


def test_stats_counts_and_view_shows_what_a_corpus_says(shaded: Corpus, tmp_path: Path) -> None:
    assert stats(shaded)["shadow"] == {"none": 2}
    shown = [shown_row(one, i)["more"] for i, one in enumerate(small_rows(shaded))]
    assert shown == [{"shadow": "none"}, {}, {"shadow": "none"}]
    write_table(tmp_path / "plain", [row(0)], SCHEMA)
    assert "shadow" not in stats(Corpus.open(tmp_path / "plain"))


def test_words_of_extra_columns_filter(shaded: Corpus, tmp_path: Path) -> None:
    made = filter_corpus(shaded, tmp_path / "out", where=["shadow==none"])
    assert made.rows == 2 and made.reasons == {"filter: there is no score shadow": 1}


def test_small_columns_hold_no_media() -> None:
    small = small_columns(EXTENDED_SCHEMA)
    assert set(small) == set(SCHEMA.names) - {c.name for c in COLUMNS if c.media} | {
        "shadow",
        "subject",
    }
    assert set(small_columns(SCHEMA)) == set(small) - {"shadow", "subject"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"shadow": "sideways"}, "shadow"),
        ({"shadow": "background", "plate": None}, "plate"),
        ({"objects": [None]}, "objects"),
        ({"alpha_kind": "furry"}, "alpha_kind"),
        ({"width": 0}, "width"),
        ({"recipe": None}, "recipe"),
    ],
)
def test_values_are_checked_by_their_column(change: dict[str, Any], field: str) -> None:
    found = check_row(row(0, **change), 0, decode=False).problems
    assert [problem.field for problem in found] == [field]
