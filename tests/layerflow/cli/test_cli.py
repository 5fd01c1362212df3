"""The command line as users meet it: options, exit status, messages without tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mined import green_screen

COMMANDS = {
    "mine", "paste", "pack", "build", "validate", "stats", "view", "filter", "merge", "split",
    "encode", "init", "info", "convert", "train", "sample", "publish", "demo",
}  # fmt: skip


def layerflow(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "layerflow.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_the_commands_of_the_contracts_page_are_there() -> None:
    from layerflow.cli.main import build_app

    app = build_app()
    names = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert names >= COMMANDS


def test_mine_says_what_it_made_and_ends_with_0_when_some_were_rejected(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    green_screen(tmp_path / "in" / "a.mp4", 0, frames=10)
    (tmp_path / "in" / "b.mp4").touch()
    common = ("--size", "96x128", "--frames", 8, "--fps", 10, "--matting", "chroma")
    call = ("mine", tmp_path / "in", "--out", tmp_path / "c", *common, "--gate", "off")
    done = layerflow(*call, "--workers", 0, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "1 clips, 1 rejected rows" in done.stdout
    assert "the file is empty" in done.stdout
    again = layerflow(*call, "--workers", 0, "--quiet")
    assert again.returncode == 0 and "1 clips" in again.stdout
    other = layerflow(*call[:-1], "strict", "--workers", 0)
    assert other.returncode == 2
    assert "gate: 'off' there, 'strict' asked" in other.stderr
    assert "Traceback" not in other.stderr


def test_nothing_made_is_status_1(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("not a video")
    done = layerflow(
        "mine", tmp_path / "a.mp4", "--out", tmp_path / "c", "--size", "96x128",
        "--matting", "chroma", "--workers", 0,
    )  # fmt: skip
    assert done.returncode == 1
    assert "not a readable video" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mine", "absent", "--out", "c", "--size", "96x128"), "absent: no such file or folder"),
        (("mine", ".", "--out", "c", "--size", "large"), "a size is HEIGHTxWIDTH"),
        (("mine", ".", "--out", "c", "--size", "96x128", "--gate", "soft"), "gate:"),
        (("encode", "absent", "--model", "m", "--out", "l"), "m is no model directory"),
        (("build", "absent.yaml"), "absent.yaml: no such manifest"),
    ],
)
def test_a_wrong_request_is_one_clear_message(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = layerflow(*arguments)
    assert done.returncode not in (0, 1)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_manifest_names_the_wrong_key_and_runs_when_right(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    green_screen(tmp_path / "in" / "a.mp4", 1, frames=10)
    text = f"""
jobs:
  - job: mine
    inputs: [{tmp_path / "in"}]
    out: {tmp_path / "c"}
    size: 96x128
    frames: 8
    fps: 10
    matting: chroma
    gate: "off"
"""
    manifest = tmp_path / "m.yaml"
    manifest.write_text(text + "    speed: 3\n")
    wrong = layerflow("build", manifest, "--workers", 0)
    assert wrong.returncode == 2
    assert "jobs.0.mine.speed: unknown key" in wrong.stderr
    manifest.write_text(text.replace("frames: 8", "frames: eight"))
    wrong = layerflow("build", manifest, "--workers", 0)
    assert "jobs.0.mine.frames" in wrong.stderr and "'eight'" in wrong.stderr
    manifest.write_text(text)
    right = layerflow("build", manifest, "--workers", 0, "--quiet")
    assert right.returncode == 0, right.stderr
    assert layerflow("validate", tmp_path / "c").returncode == 0
