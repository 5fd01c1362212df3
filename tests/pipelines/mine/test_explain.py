"""The page of ``mine --explain`` says what the job would do, and why."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.table import Corpus
from pipelines.gates import judge
from pipelines.matting.auto.backend import AutoMatting
from pipelines.mine.explain import write_explanation
from pipelines.mine.job import run_mine
from tests.support.matting_clips import moving_disc
from tests.support.mined import green_screen, options


def test_the_page_gives_each_window_the_reason_that_the_job_gives(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    green_screen(tmp_path / "in/a.mp4", seed=1)
    asked = {"gate": "strict", "thresholds": {"area_mean": [0.0, 0.0], "motion": [0.0, 99.0]}}
    run_mine(options(tmp_path / "in", tmp_path / "c", **asked), workers=0)
    rejected = list(Corpus.open(tmp_path / "c").rejected())
    told = [row["reason"] for row in rejected]
    assert len(told) == 2
    more = sum(judge(row["quality"], "standard") is None for row in rejected)
    page = unescape(
        write_explanation(options(tmp_path / "in", tmp_path / "p.html", **asked)).read_text()
    )
    assert [f"refused as gate: {reason}" for reason in told] == re.findall(
        r'class="verdict">([^<]+)', page
    )
    assert "0 of 2 taken by gate strict" in page and f"standard would take {more} more" in page
    assert "clean plate" in page and page.count("data:image/jpeg") >= 6
    assert not re.search(r"https?:|<script|src=\"(?!data:)", page)


def test_the_page_is_a_command_and_makes_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    green_screen(tmp_path / "in/a<b.mp4", seed=1)
    out = tmp_path / "page.html"
    said = ["--size", "96x128", "--frames", "8", "--fps", "10", "--matting", "chroma"]
    said += ["--gate", "off", "--out", str(out)]
    done = CliRunner().invoke(build_app(), ["mine", "--explain", str(tmp_path / "in"), *said])
    assert done.exit_code == 0, done.output
    page = out.read_text()
    assert "2 of 2 taken" in page and "a<b" not in page and "a&lt;b.mp4" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "page.html"]


def test_what_every_source_says_can_be_looked_at() -> None:
    clip = moving_disc(6, size=(96, 144), pan=0.0)

    class Blind:
        name = "u2netp"

        def predict(self, frames):  # type: ignore[no-untyped-def]
            return 0.0 * frames[..., 0].astype("float32")

    seen: list = []
    AutoMatting(networks=[Blind()], observe=seen.append)(clip.frames)
    assert [source.name for source in seen[-1]] == ["motion", "u2netp"]
    assert seen[-1][0].field.max() == 1 and seen[-1][1].field.max() < 0.5
