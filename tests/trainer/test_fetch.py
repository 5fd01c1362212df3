"""A run goes on elsewhere, from the copies at its `upload`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from manifests.train import TrainManifest
from tests.support.trainer_kit import make_manifest, same, weights
from trainer import loop, metrics
from trainer.checkpoint import checkpoints, stage_steps
from trainer.upload import MARKER, Uploader


def silent(line: str) -> None:
    pass


def elsewhere(manifest: TrainManifest, name: str) -> TrainManifest:
    return manifest.model_copy(update={"out": str(Path(manifest.out).parent / name)})


def run(manifest: TrainManifest, *, until: int | None = None, **options: Any) -> list[str]:
    """Train, in `until` steps or to the end; what was said."""
    said: list[str] = []

    def report(row: dict[str, Any]) -> None:
        if until is not None and row["step"] >= until:
            raise KeyboardInterrupt

    try:
        assert loop.train(manifest, manifest.out, log=said.append, report=report, **options)
    except KeyboardInterrupt:
        assert until is not None
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainManifest:
    folder = tmp_path_factory.mktemp("whole")
    held_out = {"latents": "video", "clips": 2, "timesteps": [500], "keep_best": True}
    manifest = make_manifest(folder, validation=held_out, upload=f"file://{folder}/there/run")
    run(manifest)
    return manifest


def begun(whole: TrainManifest, folder: Path, until: int, name: str = "here") -> TrainManifest:
    """The same run, broken off, with its copies in `folder`."""
    changes = {"out": str(folder / name), "upload": str(folder / "there"), "save_every": 2}
    manifest = whole.model_copy(update=changes)
    run(manifest, until=until)
    return manifest


def test_it_goes_on_in_an_empty_folder_to_the_same_weights_and_figures(
    whole: TrainManifest, tmp_path: Path
) -> None:
    here = begun(whole, tmp_path, 7)  # in the motion stage
    there = elsewhere(here, "other")
    shutil.rmtree(here.out)
    said = run(there)
    assert f"goes on from {here.upload}: brought stages/base, checkpoints/motion-00000002" in said
    assert "base: done before, 5 steps" in said
    assert any(line.startswith("motion: goes on after step 2 of 4: weights") for line in said)
    out, unbroken = Path(there.out), Path(whole.out)
    assert same(weights(out / "export"), weights(unbroken / "export"))
    for name in ("metrics.csv", "validation.csv"):
        ours, theirs = metrics.read(out / name), metrics.read(unbroken / name)
        assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]
    assert (out / "best/base/best.json").read_bytes() == (
        unbroken / "best/base/best.json"
    ).read_bytes()
    assert not list(out.rglob(MARKER))


def test_a_finished_run_is_brought_with_its_export(whole: TrainManifest) -> None:
    other = elsewhere(whole, "other")
    said = run(other)
    assert len(said) == 4 and all("done before" in line for line in said[1:])
    assert same(weights(Path(other.out) / "export"), weights(Path(whole.out) / "export"))


def test_what_is_further_here_stays_and_what_is_further_there_comes(
    whole: TrainManifest, tmp_path: Path
) -> None:
    here = begun(whole, tmp_path, 2)
    other = elsewhere(here, "other")
    run(other, until=4)  # further, elsewhere
    said = run(here, until=5)
    assert f"goes on from {here.upload}: brought checkpoints/base-00000004" in said
    assert checkpoints(Path(here.out), "base")[-1].name == "base-00000005"
    shutil.rmtree(tmp_path / "there/checkpoints/base-00000005")
    assert not any("goes on from" in line for line in run(here, until=7))
    assert stage_steps(Path(here.out), "base") == 5


def test_a_copy_that_is_not_complete_is_passed_over(whole: TrainManifest, tmp_path: Path) -> None:
    here = begun(whole, tmp_path, 4)
    (tmp_path / "there/checkpoints/base-00000004" / MARKER).unlink()
    said = run(elsewhere(here, "other"), until=5)
    assert f"goes on from {here.upload}: brought checkpoints/base-00000002" in said


def test_copies_of_another_run_are_refused_and_dropped_only_when_told(
    whole: TrainManifest, tmp_path: Path
) -> None:
    here = begun(whole, tmp_path, 4)
    (tmp_path / "there/notes.txt").write_text("mine")
    other = elsewhere(here, "other").model_copy(update={"seed": 8})
    with pytest.raises(ValueError, match=r"holds a run of another manifest.*\s+seed: 7 -> 8"):
        run(other)
    assert (tmp_path / "there/checkpoints/base-00000004").is_dir()
    assert not any("goes on" in line for line in run(other, until=2, fresh=True))
    kept = sorted(
        p.relative_to(tmp_path / "there").as_posix() for p in (tmp_path / "there").glob("*/*")
    )
    assert kept == ["checkpoints/base-00000002"]
    assert (tmp_path / "there/notes.txt").read_text() == "mine"
    (tmp_path / "there/run.json").unlink()
    with pytest.raises(ValueError, match=r"holds .'checkpoints'. but no run\.json"):
        run(elsewhere(other, "third"))
    run(other, until=4)  # whose run.json is here


def test_copies_that_cannot_be_read_stop_a_start_and_not_a_run(
    whole: TrainManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"out": str(tmp_path / "out"), "upload": "memory://runs/one", "save_every": 2}
    manifest = whole.model_copy(update=changes)
    run(manifest, until=2)

    def exists(*arguments: Any, **options: Any) -> bool:
        raise PermissionError("no entry")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "exists", exists)
        said = run(manifest, until=4)
        with pytest.raises(ValueError, match=r"cannot be read: no entry\. A run may be there"):
            run(elsewhere(manifest, "other"))
    assert any("no entry; goes on from what is here" in line for line in said)
    assert said[-1].startswith("upload: not at /runs/one: ")
    said = run(elsewhere(manifest, "third"), until=4)
    assert "goes on from memory://runs/one: brought checkpoints/base-00000002" in said


def test_a_folder_that_went_or_changed_meanwhile_is_not_marked_as_complete(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "out/export"
    said: list[str] = []
    uploader = Uploader(tmp_path / "out", str(tmp_path / "there"), said.append)
    uploader.put(folder)  # never was
    uploader.close()
    assert not (tmp_path / "there/export").exists()
    folder.mkdir(parents=True)
    (folder / "weights").write_text("old")
    uploader = Uploader(tmp_path / "out", str(tmp_path / "there"), said.append)
    put = uploader.files.put_file

    def replace(*arguments: Any) -> None:
        put(*arguments)
        folder.rename(tmp_path / "old")
        folder.mkdir()

    uploader.files = type("Files", (), {})()
    for name in ("exists", "rm", "makedirs", "pipe_file", "ls"):
        setattr(uploader.files, name, getattr(type(put.__self__), name).__get__(put.__self__))
    uploader.files.put_file = replace
    uploader.put(folder)
    uploader.close()
    assert (tmp_path / "there/export/weights").is_file()
    assert not (tmp_path / "there/export" / MARKER).exists() and said == []


@pytest.mark.parametrize("fresh", [False, True])
def test_copies_never_go_over_the_run_s_own_folder(tmp_path: Path, fresh: bool) -> None:
    """A copy replaces what lies at its place: there, the checkpoint itself would go."""
    manifest = make_manifest(tmp_path)
    run(manifest, until=3)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for url in (manifest.out, f"file://{manifest.out}", str(tmp_path / "link")):
        same_place = manifest.model_copy(update={"upload": url})
        with pytest.raises(ValueError, match="is the run's own folder"):
            run(same_place, fresh=fresh)
    assert checkpoints(Path(manifest.out), "base") or fresh


def test_a_place_for_copies_that_nothing_can_open_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, upload="nothing://bucket/run")
    with pytest.raises(ValueError, match="upload: nothing://bucket/run cannot be used"):
        run(manifest)
    assert not (tmp_path / "out/checkpoints").exists()
