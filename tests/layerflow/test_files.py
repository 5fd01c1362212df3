"""Files and folders that appear whole or not at all, whatever ends their writer."""

from __future__ import annotations

import ast
import errno
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from layerflow import files
from tests.support import ROOT

OLD, NEW = b"old" * 1000, b"new" * 2000


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_folder(path: Path) -> None:
    with files.new_folder(path, replace=True) as folder:
        (folder / "a").write_bytes(NEW)
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_bytes(NEW)


def stream(path: Path) -> None:
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        for start in range(0, len(NEW), 100):
            file.write(NEW[start : start + 100])


WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: files.write_bytes(path, NEW),
    "text": lambda path: files.write_text(path, NEW.decode()),
    "a stream": stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_made_and_replaced(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == NEW
    (tmp_path / "f").write_bytes(OLD)
    WRITERS[name](tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == NEW and entries(tmp_path) == ["f"]


def test_json_is_indented_and_sorted(tmp_path: Path) -> None:
    files.write_json(tmp_path / "f", {"b": [1], "a": "é"})
    said = json.dumps({"a": "é", "b": [1]}, indent=2) + "\n"
    assert (tmp_path / "f").read_text() == said


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(OLD)
    with pytest.raises(KeyError), files.replacing(tmp_path / "f") as temporary:
        temporary.write_bytes(NEW)
        raise KeyError
    assert (tmp_path / "f").read_bytes() == OLD and entries(tmp_path) == ["f"]


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "f") as one, files.replacing(tmp_path / "f") as other:
        one.write_bytes(OLD)
        other.write_bytes(NEW)
    assert (tmp_path / "f").read_bytes() == OLD and entries(tmp_path) == ["f"]


# ---- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_replaces_what_was_there(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    write_folder(tmp_path / "c")
    (tmp_path / "c" / "more").write_bytes(OLD)
    write_folder(tmp_path / "c")
    assert entries(tmp_path) == ["c"] and entries(tmp_path / "c") == ["a", "deep"]
    (tmp_path / "file").write_bytes(OLD)
    write_folder(tmp_path / "file")
    assert entries(tmp_path) == ["c", "file"] and entries(tmp_path / "file") == ["a", "deep"]


def test_a_folder_is_exchanged_in_one_step_on_this_system(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not files._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system exchanges no names")
    assert entries(tmp_path / "one") == ["other"] and entries(tmp_path / "other") == ["one"]


def test_a_folder_with_something_in_it_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine").write_bytes(OLD)
    with pytest.raises(OSError), files.new_folder(tmp_path / "c") as folder:
        (folder / "a").write_bytes(NEW)
    assert entries(tmp_path) == ["c"] and entries(tmp_path / "c") == ["mine"]
    (tmp_path / "c" / "mine").unlink()
    with files.new_folder(tmp_path / "c") as folder:
        (folder / "a").write_bytes(NEW)
    assert entries(tmp_path / "c") == ["a"]


# ---- killed -------------------------------------------------------------------------------------

STEPS = ("fsync", "replace", "rename", "open", "close")


def killed_at(step: str, count: int, write: Callable[[], None]) -> bool:
    """Whether a child that writes was killed before its call of that number to ``os.STEP``."""
    child = os.fork()
    if child:
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, -signal.SIGKILL)
        return ended != 0
    real, calls = getattr(os, step), 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(os, step, counted)
    try:
        write()
    finally:
        os._exit(0)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", ["a stream", "a folder"])
def test_kill_9_at_any_step_leaves_the_old_or_the_new(what: str, step: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    write = partial(write_folder if what == "a folder" else stream, path)

    def content() -> dict[str, bytes]:
        found = path.rglob("*") if path.is_dir() else [path]
        return {str(p.relative_to(tmp_path)): p.read_bytes() for p in found if p.is_file()}

    write()
    new = content()
    for count in range(1, 10):
        files.remove(path)
        if what == "a folder":
            path.mkdir()
            (path / "kept").write_bytes(OLD)
        else:
            path.write_bytes(OLD)
        old = content()
        killed = killed_at(step, count, write)
        assert content() in (old, new) if killed else content() == new
        files.sweep(tmp_path)
        assert entries(tmp_path) == ["out"]
        if not killed:
            break
    assert not killed


# ---- full ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [*WRITERS, "a folder"])
def test_a_full_disk_leaves_the_old_one_and_nothing_else(what: str, small_disk: Path) -> None:
    path, ballast = small_disk / "out", small_disk / "ballast"
    write = {**WRITERS, "a folder": write_folder}[what]
    write(path)
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize))
    with pytest.raises(OSError) as caught:
        write(path)
    assert caught.value.errno == errno.ENOSPC and caught.value.errno in files.FULL
    assert entries(small_disk) == ["ballast", "out"]
    whole = path / "deep" / "b" if path.is_dir() else path
    assert whole.read_bytes() == NEW
    ballast.unlink()
    write(path)
    assert entries(small_disk) == ["out"]


# ---- while it is written ------------------------------------------------------------------------


def test_a_file_drains_to_the_disk_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(files, "DRAINED", 100)
    monkeypatch.setattr(files, "_start_writing", lambda _, *part: told.append(part))
    with files.Draining(tmp_path / "file") as file:
        for number in range(25):
            file.write(bytes([number]) * 30)
    assert told == [(first, 120) for first in range(0, 720, 120)]
    assert (tmp_path / "file").read_bytes() == b"".join(bytes([n]) * 30 for n in range(25))


@pytest.mark.parametrize("linux", [True, False])
def test_a_system_that_cannot_drain_writes_the_same(
    linux: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DRAINED", 10)
    if not linux:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda _: object())
    with files.Draining(tmp_path / "file") as file:
        file.write(NEW * 10)
        file.write(OLD)
    assert (tmp_path / "file").read_bytes() == NEW * 10 + OLD


# ---- everywhere ---------------------------------------------------------------------------------


def test_no_other_module_renames_or_syncs() -> None:
    found = []
    for package in ("layerflow", "pipelines", "trainer", "manifests"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                name, owner = node.func.attr, node.func.value
                moves = name in ("rename", "renames", "fsync", "mkstemp", "NamedTemporaryFile")
                of_os = isinstance(owner, ast.Name) and owner.id == "os"
                one = len(node.args) == 1 and not node.keywords  # str.replace takes two
                if moves or (name == "replace" and (of_os or one)):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert [place for place in found if not place.startswith("layerflow/files.py:")] == []
    assert len(found) > 3
