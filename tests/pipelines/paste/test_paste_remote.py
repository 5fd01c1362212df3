"""Foregrounds and backgrounds out of a bucket give the clips that the same local files give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from layerflow.corpus.table import Corpus
from layerflow.media.cells import encode_color, encode_png
from pipelines.inputs.remote import Fetcher, list_bucket
from pipelines.inputs.sources import list_backgrounds, list_foregrounds
from pipelines.paste.job import run_paste
from tests.support.pasted import FRAMES, backdrops, disc, options, scenery, stills, write


@pytest.fixture
def bucket() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def upload(system: Any, local: Path, there: str) -> None:
    for path in sorted(local.rglob("*")):
        if path.is_file():
            system.pipe_file(f"{there}/{path.relative_to(local).as_posix()}", path.read_bytes())


def inputs(tmp_path: Path) -> tuple[Path, Path]:
    fg, bg = stills(tmp_path / "fg", 2), backdrops(tmp_path / "bg", 1)
    (fg / "disc-0.json").write_text(json.dumps({"foreground": "a glowing coal"}))
    pair = disc()
    write(fg / "pair/image/a.png", encode_png(pair[..., :3].copy()))
    write(fg / "pair/alpha/a.png", encode_png(pair[..., 3].copy()))
    write(bg / "pan.mp4", encode_color(scenery(7, 3 * FRAMES), 8.0))
    for t in range(2 * FRAMES):
        write(bg / f"walk/{t:04d}.png", encode_png(scenery(8, 2 * FRAMES)[t]))
    return fg, bg


MEDIA = ("foreground", "alpha", "background", "blended", "foreground_prompt", "background_prompt")


def test_a_bucket_gives_the_same_clips_as_a_folder(bucket: Any, tmp_path: Path) -> None:
    fg, bg = inputs(tmp_path)
    upload(bucket, fg, "/things/fg")
    upload(bucket, bg, "/things/bg")
    here = options(tmp_path, fg, bg, out=str(tmp_path / "here"), count=9, encoded_check=0)
    there = here.model_copy(
        update={
            "foregrounds": ["memory://things/fg"],
            "backgrounds": ["memory://things/bg"],
            "out": str(tmp_path / "there"),
        }
    )
    for said in (here, there):
        run_paste(said, workers=0, quiet=True)
    local, remote = (list(Corpus.open(tmp_path / name).rows()) for name in ("here", "there"))
    assert len(local) == 9
    assert [[r[name] for name in MEDIA] for r in local] == [
        [r[name] for name in MEDIA] for r in remote
    ]
    assert "a glowing coal" in {r["foreground_prompt"] for r in remote}
    roots = ("memory:///things/fg/", "memory:///things/bg/")
    for mine, theirs in zip(local, remote, strict=True):
        expected = [root + uri for root, uri in zip(roots, mine["origin"]["parents"], strict=True)]
        assert theirs["origin"]["parents"] == expected
        assert theirs["origin"]["sha256"] == mine["origin"]["sha256"]


def test_a_single_file_and_a_folder_url_are_inputs(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg", 1), backdrops(tmp_path / "bg", 2)
    (only,) = list_foregrounds([f"file://{fg}/disc-0.png"], "standard")
    assert only.uri == "disc-0.png" and only.kind == "still"  # never a path of this machine
    assert [s.uri for s in list_backgrounds([f"file://{bg}"])] == [f"hill-{k}.png" for k in (0, 1)]


def test_what_cannot_be_listed_or_fetched_is_said(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        list_bucket("memory://nothing/here")
    with pytest.raises(ValueError, match="cannot be listed"):
        list_bucket("nosuch://bucket/x")
    bucket.pipe_file("/corpus/state.json", b"{}")
    with pytest.raises(ValueError, match="copied to a local folder"):
        list_bucket("memory://corpus")
    bg = backdrops(tmp_path / "bg", 1)
    bucket.pipe_file("/fg/good.png", encode_png(disc()))
    bucket.pipe_file("/fg/broken.png", b"no picture")
    said = options(tmp_path, Path("unused"), bg, foregrounds=["memory://fg"], count=4)
    run_paste(said, workers=0, quiet=True)
    corpus = Corpus.open(said.out)
    assert len(corpus) == 4
    (refused,) = corpus.rejected()
    assert refused["uri"] == "memory:///fg/broken.png"
    (gone,) = [s for s in list_foregrounds(["memory://fg"], "off") if s.uri.endswith("good.png")]
    bucket.rm("/fg/good.png")
    fetcher = Fetcher()
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be fetched"):
            fetcher.local(gone)
    fetcher.clear()
