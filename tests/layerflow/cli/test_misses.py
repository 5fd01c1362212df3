"""After a mine job the gate's decisions are told in numbers, with what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.cli.misses import print_misses
from layerflow.corpus.table import REJECTED_SCHEMA, Corpus, rejected_row
from layerflow.corpus.writer import write_table
from pipelines.gates import GATES, looser, misses
from tests.support.mined import green_screen


def test_each_clip_counts_for_the_threshold_that_decides_it() -> None:
    gate = {"blur": (8.0, 99.0), "area_mean": (0.01, 0.65)}
    told = misses(
        [
            {"blur": 2.0, "area_mean": 0.9},
            {"blur": 7.5},
            {"blur": 3.0, "area_mean": None},
            {"blur": 20.0, "area_mean": 0.7},
            {"blur": 20.0, "area_mean": 0.3},
            {"blur": float("nan")},
        ],
        gate,
    )
    assert [(m.score, m.side, m.bound, m.clips) for m in told] == [
        ("blur", "below", 8.0, 3),
        ("area_mean", "above", 0.65, 1),
    ]
    assert (told[0].middle, told[0].nearest) == (3.0, 7.5)
    assert looser("strict") == ["standard", "coarse", "loose"]
    assert looser("loose") == looser("off") == []
    assert misses([{"blur": 1.0}], GATES["off"]) == []


def test_a_job_that_keeps_nothing_says_how_near_it_was_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    green_screen(tmp_path / "in/a.mp4", seed=1)
    manifest, out = tmp_path / "m.yaml", tmp_path / "out"
    manifest.write_text(
        f"jobs: [{{job: mine, inputs: [{tmp_path}/in], out: {out}, size: 96x128, frames: 8,"
        " fps: 10, matting: chroma, thresholds: {area_mean: [0.5, 1]}}]\n"
    )
    done = CliRunner().invoke(build_app(), ["build", str(manifest), "--workers", "0", "--quiet"])
    assert done.exit_code == 1, done.output
    values = [row["quality"]["area_mean"] for row in Corpus.open(out).rejected()]
    assert len(values) == 2
    assert "2      area_mean" in done.output and "at least 0.5" in done.output
    assert f"{max(values):.3g}" in done.output
    for preset in ("coarse", "loose"):
        assert f"layerflow retry {out} --gate {preset} --out {out}-{preset}" in done.output
    assert f"layerflow view {out}" in done.output


def test_a_gate_that_turned_nothing_down_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = rejected_row("a.mp4", "decode", "broken", kind="mined", recipe="r")
    write_table(tmp_path / "rejected", [row], REJECTED_SCHEMA)
    print_misses(tmp_path, "standard")
    print_misses(tmp_path / "absent", "off")  # nothing is read where no score is judged
    assert capsys.readouterr().out == ""
