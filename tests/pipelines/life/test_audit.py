"""What clips were made of, and what that asks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.table import Corpus
from pipelines.audit import audit, audit_rows
from pipelines.remove import Wanted, run_remove
from tests.support.sourced import OF_SECRET, SECRET, make, numbers, story


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audit") / "c"
    make(out, story())
    return out


def test_sources_and_licences_are_counted_with_hours(corpus: Path) -> None:
    found = audit(Corpus.open(corpus))
    assert found["sources"]["a.mp4"] == {
        "clips": 3,
        "hours": round(3 * 5 / 8 / 3600, 4),
        "names": ["CC-BY-4.0"],
        "attributions": ["maker of a.mp4"],
        "asks": [],
    }
    assert found["sources"][SECRET]["clips"] == 2  # mined, and the background of a paste
    assert found["sources"]["d.mp4"]["asks"] == ["no redistribution"]
    assert found["sources"]["h.mp4"]["asks"] == ["not stated"]
    assert found["licences"]["CC BY ND 4.0"]["hours"] == 0.0  # a still
    assert found["licences"]["not stated"]["names"] == ["g.mp4", "h.mp4"]
    assert sum(share["clips"] for share in found["licences"].values()) == 8


def test_a_source_says_everything_made_of_it(corpus: Path) -> None:
    found = list(audit_rows(Corpus.open(corpus), SECRET))
    assert numbers([row["id"] for row in found]) == [1, 4, 6]  # the copy has another name ...
    content = found[0]["sha256"]
    copies = list(audit_rows(Corpus.open(corpus), content))  # ... and this content
    assert numbers([row["id"] for row in copies]) == OF_SECRET


def test_the_command_prints_tables_and_writes_every_row(corpus: Path, tmp_path: Path) -> None:
    def say(*words: str) -> str:
        done = CliRunner().invoke(build_app(), ["audit", str(corpus), *words])
        assert done.exit_code == 0, done.output
        return done.output

    assert "no redistribution" in say() and "d.mp4" in say()
    assert say("--source", SECRET).startswith(f"3 clips, 0.0005 hours, are made of {SECRET}\n")
    assert json.loads(say("--json"))["sources"]["a.mp4"]["clips"] == 3
    say("--rows", str(tmp_path / "rows.csv"))
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert len(rows) == 8 and rows[2]["parents"] == "c.mp4; d.mp4"
    assert rows[2]["asks"] == "no redistribution" and rows[2]["attribution"] == "maker of c.mp4"


def test_what_was_removed_is_told(tmp_path: Path) -> None:
    make(tmp_path / "c", story())
    wanted = Wanted(sources=[SECRET])
    run_remove(tmp_path / "c", wanted, reason="asked for", workers=0, quiet=True)
    said = CliRunner().invoke(build_app(), ["audit", str(tmp_path / "c")]).output
    assert "by source, 4 clips: asked for" in said and SECRET not in said
