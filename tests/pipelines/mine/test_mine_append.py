"""Mining more into a corpus that is there."""

from __future__ import annotations

import shutil
from pathlib import Path

from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.published import open_corpus
from layerflow.corpus.table import Corpus
from pipelines.mine.job import run_mine
from tests.support.mined import green_screen, options


def test_more_videos_are_mined_into_a_corpus_and_none_twice(tmp_path: Path) -> None:
    for folder, seed in (("first", 0), ("more", 1)):
        (tmp_path / folder).mkdir()
        green_screen(tmp_path / folder / "v.mp4", seed=seed)  # of one name
    out = tmp_path / "c"

    def mine(*folders: str, append: bool) -> None:
        inputs = [str(tmp_path / folder) for folder in folders]
        run_mine(options(Path("unused"), out, inputs=inputs), workers=0, quiet=True, append=append)

    mine("first", append=False)
    before = list(Corpus.open(out).rows())
    (shard,) = Corpus.open(out).files()
    stamp = shard.stat().st_mtime_ns
    mine("more", append=True)
    rows = list(Corpus.open(out).rows())
    assert rows[: len(before)] == before and len(rows) == 2 * len(before) > 0
    assert shard.stat().st_mtime_ns == stamp
    assert len({row["origin"]["sha256"] for row in rows}) == 2
    shutil.copytree(tmp_path / "first", tmp_path / "again")
    mine("first", "more", "again", append=True)
    assert list(Corpus.open(out).rows()) == rows
    said = CliRunner().invoke(build_app(), ["stats", str(out), "--version", "1", "--json"])
    assert f'"rows": {len(before)},' in said.output
    assert open_corpus(f"{out}@v1").ids() == [row["id"] for row in before]
