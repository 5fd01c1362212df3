"""Rejected rows replayed: only their units run, old rows stay, what is new comes at the end."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.derive import RECORD, merge_corpora
from layerflow.corpus.table import Corpus
from manifests.pack import PackOptions
from pipelines.mine import job
from pipelines.mine.job import run_mine
from pipelines.mine.window import Window
from pipelines.pack.job import run_pack
from pipelines.retry import run_retry
from tests.support.corpora import make_rejected, make_rows, write_corpus
from tests.support.mined import green_screen, options


def cutout(path: Path, value: int, alpha: int = 0) -> None:
    picture = np.full((32, 32, 4), value, np.uint8)
    picture[..., 3] = alpha
    picture[8:24, 8:24, 3] = 255
    Image.fromarray(picture).save(path)


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    """A corpus of two stills and one rejected file, which is then repaired."""
    folder = tmp_path / "cutouts"
    folder.mkdir()
    for name, value in (("a", 40), ("c", 200)):
        cutout(folder / f"{name}.png", value)
    (folder / "b.png").write_bytes(b"no picture")
    made = PackOptions(inputs=[str(folder)], out=str(tmp_path / "stills"))
    summary = run_pack(made, workers=0, quiet=True)
    assert (summary.kept, summary.rejected) == (2, 1)
    cutout(folder / "b.png", 120)
    return tmp_path / "stills"


def test_a_repaired_still_is_gained(stills: Path, tmp_path: Path) -> None:
    before = list(Corpus.open(stills).rows())
    out = tmp_path / "again"
    retried = run_retry(stills, out, workers=0, quiet=True)
    assert (retried.replayed, retried.gained) == (1, 1)
    rows = list(Corpus.open(out).rows())
    assert rows[:2] == before and rows[2]["origin"]["uri"].endswith("b.png")
    assert Corpus.open(out).rejected() == [] and list(Corpus.open(stills).rows()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "cutouts", "stills"]
    with pytest.raises(ValueError, match="there is none to replay"):
        run_retry(out, tmp_path / "third", workers=0, quiet=True)


def test_a_row_of_a_table_is_replayed(tmp_path: Path) -> None:
    """The table names files, one of which is repaired."""
    folder = tmp_path / "set"
    folder.mkdir()
    cutout(folder / "a.png", 40)
    (folder / "b.png").write_bytes(b"no picture")
    pq.write_table(pa.table({"foreground": ["a.png", "b.png"]}), folder / "t.parquet")
    made = PackOptions(inputs=[str(folder)], out=str(tmp_path / "rows"), layout="dataset")
    summary = run_pack(made, workers=0, quiet=True)
    assert (summary.kept, summary.rejected) == (1, 1)
    cutout(folder / "b.png", 120)
    retried = run_retry(tmp_path / "rows", tmp_path / "again", workers=0, quiet=True)
    assert (retried.replayed, retried.gained) == (1, 1)


def command(*arguments: str) -> str:
    app = build_app()
    result = CliRunner().invoke(app, [*arguments, "--workers", "0", "--quiet"])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_says_what_it_did(stills: Path, tmp_path: Path) -> None:
    output = command("retry", str(stills), "--out", str(tmp_path / "x"))
    assert "1 rejected rows replayed, 1 clips gained" in output


def test_what_fails_again_stays_rejected(stills: Path, tmp_path: Path) -> None:
    (stills.parent / "cutouts" / "b.png").write_bytes(b"still no picture")
    merged = tmp_path / "merged"
    merge_corpora([Corpus.open(stills)], merged)  # the record goes along
    retried = run_retry(merged, tmp_path / "again", workers=0, quiet=True)
    assert (retried.replayed, retried.gained) == (1, 0)
    assert [row["uri"] for row in Corpus.open(tmp_path / "again").rejected()] == ["b.png"]


def test_only_the_wanted_videos_are_mined_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    green_screen(videos / "v0.mp4", 0)
    (videos / "v1.mp4").write_bytes(b"no video")
    assert run_mine(options(videos, tmp_path / "c"), workers=0, quiet=True).kept == 2
    green_screen(videos / "v1.mp4", 1)
    seen: list[str] = []
    unit = job.mine_unit

    def spy(payload: dict[str, object], **more: object) -> object:
        seen.append(str(payload["uri"]))
        return unit(payload, **more)

    monkeypatch.setattr("pipelines.mine.job.mine_unit", spy)
    retried = run_retry(tmp_path / "c", tmp_path / "d", workers=0, quiet=True)
    assert seen == ["v1.mp4"] and retried.gained == 2
    uris = [row["origin"]["uri"] for row in Corpus.open(tmp_path / "d").rows(["origin"])]
    assert uris == ["v0.mp4", "v0.mp4", "v1.mp4", "v1.mp4"]


SMALL = {"size": "48x64"}


def test_a_duplicate_beside_a_window_that_failed_stays_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for seed in (0, 2):
        green_screen(videos / f"v{seed}.mp4", seed)
    calls = count()

    def fails_later(window: Window) -> None:
        if next(calls) == 2:
            raise ValueError("no memory left")

    few = options(videos, tmp_path / "c", thresholds={"duplicate_distance": (1.5, 9)}, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(job, "STEPS", (*job.STEPS, fails_later))
        assert run_mine(few, workers=0, quiet=True).kept == 2
    stages = [(row["uri"], row["stage"]) for row in Corpus.open(tmp_path / "c").rejected()]
    assert stages == [("v2.mp4", "layers"), ("v2.mp4", "duplicates")]
    retried = run_retry(tmp_path / "c", tmp_path / "again", workers=0, quiet=True)
    assert (retried.replayed, retried.gained) == (1, 1)
    left = Corpus.open(tmp_path / "again").rejected()
    assert [(row["uri"], row["stage"]) for row in left] == stages[1:]


def test_a_looser_gate_gives_what_mining_with_it_gives(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for seed in (0, 1):
        green_screen(videos / f"v{seed}.mp4", seed)
    run_mine(options(videos, tmp_path / "strict", gate="strict", **SMALL), workers=0, quiet=True)
    strict = Corpus.open(tmp_path / "strict")
    assert len(strict) == 0
    assert {row["stage"] for row in strict.rejected()} == {"gate", "duplicates"}
    run_mine(options(videos, tmp_path / "loose", gate="loose", **SMALL), workers=0, quiet=True)
    again = tmp_path / "again"
    output = command("retry", str(strict.path), "--out", str(again), "--gate", "loose")
    assert "4 rejected rows replayed, 4 clips gained" in output
    rows = list(Corpus.open(again).rows())
    assert rows == list(Corpus.open(tmp_path / "loose").rows())  # ids, recipes, scores and media
    assert rows[0]["recipe"] != strict.rejected()[0]["recipe"]
    assert Corpus.open(again).rejected() == []


def test_without_a_record_it_says_so(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c", make_rows(2), make_rejected())
    with pytest.raises(ValueError, match="of 3 the job is not on record"):
        run_retry(path, tmp_path / "d", workers=0, quiet=True)
    (path / RECORD).write_text("{")
    with pytest.raises(ValueError, match="not on record"):
        run_retry(path, tmp_path / "d", workers=0, quiet=True)


def test_the_record_stays_on_this_machine(stills: Path, tmp_path: Path) -> None:
    from pipelines.publish.files import PublishOptions
    from pipelines.publish.job import run_publish

    record = json.loads((stills / RECORD).read_text())
    assert [job["options"]["inputs"] for job in record.values()] == [[str(tmp_path / "cutouts")]]
    run_publish(stills, PublishOptions("a/b"), dry_run=tmp_path / "hub", workers=0, quiet=True)
    for path in (tmp_path / "hub").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path
