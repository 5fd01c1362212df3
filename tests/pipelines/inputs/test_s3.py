"""S3 through the real s3fs, against a local server that speaks its API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerflow.corpus.table import Corpus
from pipelines.mine.job import run_mine
from pipelines.paste.job import run_paste
from tests.support.mined import green_screen, options
from tests.support.pasted import backdrops, stills
from tests.support.pasted import options as paste_options
from tests.support.trainer_kit import make_manifest
from trainer import loop
from trainer.upload import MARKER

pytest.importorskip("s3fs", reason="needs the extra s3")
pytest.importorskip("moto", reason="needs the extra dev")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """An S3 file system with the empty bucket `things`, the default one of this process."""
    from tests.support.s3 import s3_bucket

    with s3_bucket("things") as system:
        yield system


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_run_is_copied_to_s3_and_goes_on_from_the_copy(bucket: Any, tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, upload="s3://things/run", save_every=2)
    said: list[str] = []
    assert loop.train(manifest, manifest.out, only="base", log=said.append)
    assert not any("failed" in line for line in said)
    there = sorted(path.rsplit("/", 1)[-1] for path in bucket.ls("things/run/checkpoints"))
    assert there == ["base-00000004", "base-00000005"]
    for folder in ("checkpoints/base-00000005", "stages/base", "export"):
        bucket.get(f"things/run/{folder}/", str(tmp_path / "copy" / folder), recursive=True)
        copied = files_of(tmp_path / "copy" / folder)
        assert copied.pop(MARKER) == b""
        assert copied == files_of(Path(manifest.out) / folder)

    said.clear()
    assert loop.train(manifest, tmp_path / "elsewhere", only="motion", log=said.append)
    assert "goes on from s3://things/run: brought stages/base" in said
    assert any("base: done before" in line for line in said)


def test_a_bucket_that_is_not_there_is_said_and_training_goes_on(
    bucket: Any, tmp_path: Path
) -> None:
    manifest = make_manifest(tmp_path, upload="s3://no-such-bucket/run")
    said: list[str] = []
    assert loop.train(manifest, manifest.out, only="base", log=said.append)
    assert any("upload of export to no-such-bucket/run failed" in line for line in said)


def test_videos_are_mined_out_of_a_bucket(bucket: Any, tmp_path: Path) -> None:
    green_screen(tmp_path / "v.mp4", seed=0)
    bucket.put(str(tmp_path / "v.mp4"), "things/videos/deep/v.mp4")
    bucket.pipe_file("things/videos/broken.mp4", b"no video")
    there = options(Path("unused"), tmp_path / "s3", inputs=["s3://things/videos"])
    here = options(Path("unused"), tmp_path / "here", inputs=[str(tmp_path / "v.mp4")])
    run_mine(there, workers=0, quiet=True)
    run_mine(here, workers=0, quiet=True)
    rows, expected = (list(Corpus.open(tmp_path / name).rows()) for name in ("s3", "here"))
    assert [row["origin"]["uri"] for row in rows] == ["s3://things/videos/deep/v.mp4"] * 2
    media = ("foreground", "alpha", "background", "blended")
    assert [[row[name] for name in media] for row in rows] == [
        [row[name] for name in media] for row in expected
    ]
    (refused,) = Corpus.open(tmp_path / "s3").rejected()
    assert refused["uri"] == "s3://things/videos/broken.mp4"


def test_cutouts_of_a_bucket_are_pasted(bucket: Any, tmp_path: Path) -> None:
    for path in stills(tmp_path / "fg", 2).iterdir():
        bucket.put(str(path), f"things/cutouts/{path.name}")
    behind = backdrops(tmp_path / "bg", 1)
    said = paste_options(
        tmp_path, Path("unused"), behind, foregrounds=["s3://things/cutouts"], count=2
    )
    run_paste(said, workers=0, quiet=True)
    uris = {row["origin"]["uri"] for row in Corpus.open(said.out).rows()}
    assert uris == {f"s3://things/cutouts/disc-{k}.png" for k in range(2)}


def test_a_table_names_videos_in_a_bucket(bucket: Any, tmp_path: Path) -> None:
    green_screen(tmp_path / "v.mp4", seed=1)
    bucket.put(str(tmp_path / "v.mp4"), "things/more/v.mp4")
    table = tmp_path / "videos.csv"
    table.write_text("video,foreground\ns3://things/more/v.mp4,a striped ball\n")
    out = tmp_path / "c"
    run_mine(options(Path("unused"), out, inputs=[str(table)]), workers=0, quiet=True)
    prompts = {row["foreground_prompt"] for row in Corpus.open(out).rows()}
    assert prompts == {"a striped ball"}
