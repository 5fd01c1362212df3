"""Clips as files: what other programs read in them, and the way back into a corpus."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.columns import EXTENDED_SCHEMA
from layerflow.corpus.derive import Selection
from layerflow.corpus.table import Corpus
from layerflow.corpus.validate import validate
from layerflow.corpus.writer import write_table
from layerflow.media.cells import encode_alpha
from manifests.pack import PackOptions
from pipelines.export import containers
from pipelines.export.job import Exported, run_export
from pipelines.pack.job import run_pack
from tests.support.corpora import make_rows
from tests.support.job_units import files
from tests.support.several import several_row

FORMATS = ("webdataset", "folder")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of all kinds; one of two objects with a mask of what was seen, and a plate."""
    rows = [dict.fromkeys(EXTENDED_SCHEMA.names) | row for row in make_rows(6)]
    known = encode_alpha(np.full((4, 32, 40), 255, np.uint8), 8.0)
    rows.insert(1, several_row(2, 9, recipe="r" * 16, known=known, subject="s", draw='{"a": 1.5}'))
    rows[1] |= {"plate": rows[1]["background"], "shadow": "background"}
    out = tmp_path_factory.mktemp("export") / "corpus"
    write_table(out, rows, EXTENDED_SCHEMA)
    info = {"kind": "mined", "recipe": "r", "options": {}, "state": "complete", "rows": len(rows)}
    (out / "corpus.json").write_text(json.dumps(info | {"rejected": 0, "reasons": {}}))
    return out


def pack(source: Path, out: Path, **options: Any) -> Corpus:
    run_pack(PackOptions(inputs=[str(source)], out=str(out), **options), workers=0, quiet=True)
    return Corpus.open(out)


def in_order(corpus: Corpus) -> list[dict[str, Any]]:
    """Rows as exports have them: moving clips, then stills."""
    return sorted(corpus.rows(), key=lambda row: row["kind"] == "image")


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_that_is_packed_gives_equal_rows(
    made: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(containers, "FOLDER_CLIPS", 2)
    corpus = Corpus.open(made)
    done = run_export(corpus, tmp_path / "out", format=format)
    assert (done.clips, done.pieces > 3) == (7, True)
    back = pack(tmp_path / "out", tmp_path / "back")
    assert list(back.rows()) == in_order(corpus)
    assert back.rejected() == [] and validate(tmp_path / "back") == []


def test_a_shard_holds_the_stored_bytes_and_no_time_or_owner(made: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(made)
    run_export(corpus, tmp_path / "out", format="webdataset")
    run_export(corpus, tmp_path / "again", format="webdataset")
    assert files(tmp_path / "out") == files(tmp_path / "again")
    with tarfile.open(tmp_path / "out/video-000000.tar") as tar:
        members = tar.getmembers()
        found = {m.name: tar.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
    row = corpus.row(1)
    told = json.loads(found[f"{row['id']}.json"])
    assert told["blended_prompt"] == "boxes on grey" and told["origin"]["uri"] == "9.mp4"
    assert told["objects"][1]["prompt"] == "box 1"
    assert found[f"{row['id']}.alpha.mkv"] == row["alpha"]
    assert found[f"{row['id']}.objects.1.colour.mp4"] == row["objects"][1]["colour"]
    assert found[f"{row['id']}.plate.mp4"] == row["plate"]


def test_a_folder_has_a_table_that_names_files_and_rights(made: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(made)
    run_export(corpus, tmp_path / "out", format="folder")
    lines = (tmp_path / "out/stills/00000/metadata.jsonl").read_text().splitlines()
    stills = [row for row in corpus.rows() if row["kind"] == "image"]
    for line, row in zip(map(json.loads, lines), stills, strict=True):
        assert line["licence"] == (row["origin"]["licence"] or "")
        assert line["source"] == row["origin"]["uri"]
        path = tmp_path / "out/stills/00000" / line["foreground_file_name"]
        assert path.read_bytes() == row["foreground"]
    assert "video-0.mp4" in (tmp_path / "out/LICENSE.md").read_text()


def undecoded(table: Any) -> Any:
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, datasets.Video):
            table = table.cast_column(name, datasets.Video(decode=False))
    return table


@pytest.mark.slow
def test_datasets_reads_both_formats(made: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    corpus = Corpus.open(made)
    for format in FORMATS:
        run_export(
            corpus, tmp_path / format, format=format, selection=Selection.of(kinds=["mined"])
        )
    wanted = [row for row in corpus.rows() if row["kind"] == "mined"]
    where = {"cache_dir": str(tmp_path / "cache"), "split": "train"}
    shards = str(tmp_path / "webdataset/video-*.tar")
    tars = datasets.load_dataset("webdataset", data_files={"train": shards}, **where)
    tars = undecoded(tars)
    assert [row["json"]["id"] for row in tars] == [row["id"] for row in wanted]
    assert [row["alpha.mkv"]["bytes"] for row in tars] == [row["alpha"] for row in wanted]
    folder = str(tmp_path / "folder/videos")
    films = datasets.load_dataset("videofolder", data_dir=folder, **where)
    films = undecoded(films)
    assert [row["background_prompt"] for row in films] == [r["background_prompt"] for r in wanted]
    read = [Path(row["alpha"]["path"]).read_bytes() for row in films]
    assert read == [row["alpha"] for row in wanted]


def test_the_command_exports_a_part(made: Path, tmp_path: Path) -> None:
    words = ["export", str(made), "--out", str(tmp_path / "out"), "--where", "ghost<4", "--quiet"]
    done = CliRunner().invoke(build_app(), words)
    assert done.exit_code == 0 and "2 clips in 1 webdataset pieces" in done.output
    back = pack(tmp_path / "out", tmp_path / "back", licence="MIT")
    wanted = [row for row in Corpus.open(made).rows() if (row["quality"]["ghost"] or 9) < 4]
    assert back.ids() == [row["id"] for row in wanted]
    stated = [row["origin"]["licence"] or "MIT" for row in wanted]
    assert [row["origin"]["licence"] for row in back.rows()] == stated


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_interrupted_goes_on_behind_the_last_complete_piece(
    made: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "SHARD_BYTES", 1)
    monkeypatch.setattr(containers, "FOLDER_CLIPS", 1)
    corpus = Corpus.open(made)
    run_export(corpus, tmp_path / "whole", format=format)
    stopped: list[str] = []
    put = containers.files_of

    def stop_at_the_fourth(row: dict[str, Any]) -> Any:
        stopped.append(row["id"])
        if len(stopped) == 4:
            raise KeyboardInterrupt
        return put(row)

    monkeypatch.setattr(containers, "files_of", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run_export(corpus, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()
    (record,) = tmp_path.glob(".out.*.building/pieces.jsonl")
    record.write_text(record.read_text() + '{"name": "cut o')  # what a crash may leave
    run_export(corpus, tmp_path / "out", format=format)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert len(stopped) == 4 + 4  # three of seven clips were not written again
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_same_request_again_does_nothing_and_another_stops(made: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(made)
    run_export(corpus, tmp_path / "out", format="folder")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert isinstance(run_export(corpus, tmp_path / "out", format="folder"), Exported)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(ValueError, match="not empty"):
        run_export(corpus, tmp_path / "out", format="webdataset")
    with pytest.raises(ValueError, match="no format"):
        run_export(corpus, tmp_path / "other", format="zip")
    with pytest.raises(ValueError, match="no clip is as asked for"):
        run_export(corpus, tmp_path / "other", format="folder", selection=Selection.of(["fps>99"]))
    with pytest.raises(ValueError, match="as they are"):
        pack(tmp_path / "out", tmp_path / "back", size="16x16")


# ---- what strangers put into it -----------------------------------------------------------------


def tar_of(entries: list[tuple[tarfile.TarInfo, bytes]], **form: Any) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", **form) as tar:
        for info, data in entries:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return held.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


ID = "0" * 16
HOSTILE = {
    "a path that climbs": [(entry(f"../{ID}.json"), b"{}")],
    "an absolute path": [(entry("/etc/passwd"), b"x")],
    "a name that none has": [(entry(f"{ID}.alpha.exe"), b"x")],
    "a link": [(entry(f"{ID}.json", tarfile.SYMTYPE, "/etc/passwd"), b"")],
    "a device": [(entry(f"{ID}.json", tarfile.CHRTYPE), b"")],
    "a head that extends others": [(entry(f"{ID}.{'x' * 120}.json"), b"{}")],
    "a file twice": [(entry(f"{ID}.json"), b"{}"), (entry(f"{ID}.json"), b"{}")],
    "deep JSON": [(entry(f"{ID}.json"), b"[" * 100_000)],
    "JSON that is no row": [(entry(f"{ID}.json"), b'{"format": 1, "id": "%s"}' % ID.encode())],
    "JSON of another type": [
        (
            entry(f"{ID}.json"),
            json.dumps({"format": 1, "id": ID, "quality": {}, "fps": "fast"}).encode(),
        )
    ],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_export_holds_is_refused_and_said(made: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    run_export(Corpus.open(made), out, format="webdataset", selection=Selection.of(kinds=["image"]))
    bad = tar_of(HOSTILE[what], format=tarfile.PAX_FORMAT)
    good = (out / "still-000000.tar").read_bytes()
    (out / "video-000000.tar").write_bytes(bad)
    line = {"name": "video-000000.tar", "sha256": None}
    (out / "pieces.jsonl").write_text(json.dumps(line) + "\n" + (out / "pieces.jsonl").read_text())
    back = pack(out, tmp_path / "back")
    assert [row["uri"] for row in back.rejected()] == ["video-000000.tar"]
    assert back.ids() == [row["id"] for row in Corpus.open(made).rows() if row["kind"] == "image"]
    assert good and not (tmp_path.parent / f"{ID}.json").exists()


def test_a_size_that_no_clip_has_is_refused_before_it_is_read(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_export(Corpus.open(made), out, format="webdataset", selection=Selection.of(kinds=["image"]))
    head = entry(f"{ID}.alpha.mkv")
    head.size = 7 << 30
    with (out / "still-000000.tar").open("wb") as file:
        file.write(head.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(512 + (7 << 30))  # sparse: takes no space
    line = {"name": "still-000000.tar", "sha256": None}
    (out / "pieces.jsonl").write_text(json.dumps(line) + "\n")
    (reason,) = [row["reason"] for row in pack(out, tmp_path / "back").rejected()]
    assert "larger than a clip may be" in reason


def test_pieces_that_are_changed_missing_or_elsewhere_are_refused(
    made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_export(Corpus.open(made), out, format="webdataset")
    shard = out / "video-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(b"boxes on grey", b"Boxes on grey"))
    reasons = [row["reason"] for row in pack(out, tmp_path / "changed").rejected()]
    assert len(reasons) == 1 and "sha256" in reasons[0]
    shard.unlink()
    with pytest.raises(ValueError, match=r"video-000000\.tar is missing"):
        pack(out, tmp_path / "missing")
    (tmp_path / "elsewhere.tar").write_bytes(whole)
    shard.symlink_to(tmp_path / "elsewhere.tar")
    with pytest.raises(ValueError, match="leads out"):
        pack(out, tmp_path / "linked")
    (out / "pieces.jsonl").write_text('{"name": "../elsewhere.tar", "sha256": null}\n')
    with pytest.raises(ValueError, match="name of no piece"):
        pack(out, tmp_path / "named")


def test_a_folder_loses_a_clip_with_a_file_too_few_and_all_behind_a_link(
    made: Path, tmp_path: Path
) -> None:
    corpus = Corpus.open(made)
    run_export(corpus, tmp_path / "out", format="folder", selection=Selection.of(kinds=["image"]))
    run_export(corpus, tmp_path / "few", format="folder", selection=Selection.of(kinds=["image"]))
    ids = [row["id"] for row in corpus.rows() if row["kind"] == "image"]
    gone = tmp_path / f"few/stills/00000/{ids[0]}.alpha.png"
    gone.unlink()
    few = pack(tmp_path / "few", tmp_path / "back")
    assert few.ids() == ids[1:] and ids[0] in few.rejected()[0]["reason"]
    shutil.copy(tmp_path / f"out/stills/00000/{ids[0]}.alpha.png", tmp_path / "secret.png")
    link = tmp_path / f"out/stills/00000/{ids[0]}.alpha.png"
    link.unlink()
    link.symlink_to(tmp_path / "secret.png")
    linked = pack(tmp_path / "out", tmp_path / "linked")
    assert len(linked) == 0 and "leads out" in linked.rejected()[0]["reason"]
