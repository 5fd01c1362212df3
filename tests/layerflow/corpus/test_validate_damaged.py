"""Corpora that are damaged: what is said of them; and derivations that are killed in the middle."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.derive import merge_corpora
from layerflow.corpus.stats import stats
from layerflow.corpus.table import Corpus
from layerflow.corpus.validate import validate
from tests.support.corpora import make_rejected, make_rows, write_corpus

SHARD = "data-00000-of-00001.arrow"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def retyped(path: Path) -> None:
    table = pa.ipc.open_stream(pa.py_buffer(path.read_bytes())).read_all()
    place = table.schema.get_field_index("fps")
    table = table.set_column(place, "fps", pa.array(["8"] * len(table)))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


# what happens to it, and what every command says then
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a cut shard": (lambda path: cut(path / SHARD), f"{SHARD} cannot be read"),
    "a lost shard": (lambda path: (path / SHARD).unlink(), f"{SHARD} cannot be read"),
    "no state": (lambda path: (path / "state.json").unlink(), "no state.json"),
    "a broken state": (
        lambda path: (path / "state.json").write_text("{"),
        "state.json cannot be read",
    ),
    "another state": (
        lambda path: (path / "state.json").write_text("[1]"),
        "state.json cannot be read",
    ),
    "another type": (lambda path: retyped(path / SHARD), "column fps is string, not float"),
}


def invoke(*arguments: object) -> Any:
    app = build_app()
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_command_names_what_is_wrong(tmp_path: Path, damage: str) -> None:
    path = write_corpus(tmp_path / "corpus", make_rows(6), make_rejected())
    change, said = DAMAGES[damage]
    change(path)
    result = invoke("validate", path, "--workers", 0, "--quiet")
    assert result.exit_code == 1 and said in result.output and "Fix: " in result.output
    for command in (
        ("stats", path),
        ("filter", path, "--where", "ghost>1", "--out", tmp_path / "out"),
        ("merge", path, "--out", tmp_path / "out"),
        ("split", path, "--out", tmp_path / "out"),
        ("view", path, "--out", tmp_path / "out.html"),
    ):
        result = invoke(*command)
        assert isinstance(result.exception, ValueError), (command, result.exception)
        assert said in str(result.exception) and str(path) in str(result.exception)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["corpus"]  # nothing half made


def test_a_cut_rejected_table_is_named(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "corpus", make_rows(3), make_rejected())
    cut(path / "rejected" / SHARD)
    assert "rejected" in validate(path)[0].field
    with pytest.raises(ValueError, match=rf"rejected/{SHARD} cannot be read"):
        stats(Corpus.open(path))
    with pytest.raises(ValueError, match=rf"rejected/{SHARD} cannot be read"):
        merge_corpora([Corpus.open(path)], tmp_path / "out")


KILLED = """import sys
from pathlib import Path
import layerflow.corpus.derive as derive
from layerflow.corpus.table import Corpus
from layerflow.corpus.splits import parse_fractions
sent, write = 0, derive.write_shards_of
def slow(folder, rows, schema):
    def counted():
        global sent
        for row in rows:
            yield row
            sent += 1
            if sent == int(sys.argv[4]):
                print("now", flush=True)
                sys.stdin.read()
    return write(folder, counted(), schema)
derive.write_shards_of = slow
corpus, out = Corpus.open(sys.argv[2]), Path(sys.argv[3])
if sys.argv[1] == "merge":
    derive.merge_corpora([corpus, corpus], out)
elif sys.argv[1] == "filter":
    derive.filter_corpus(corpus, out, where=["ghost>3"], keep_unknown=True)
else:
    derive.split_corpus(corpus, out, parse_fractions("train=0.5,test=0.5"))
"""


SLOW = pytest.mark.slow  # four processes each


@pytest.mark.parametrize(
    "job", ["split", pytest.param("merge", marks=SLOW), pytest.param("filter", marks=SLOW)]
)
def test_killed_and_started_again_gives_the_same_bytes(tmp_path: Path, job: str) -> None:
    path = write_corpus(tmp_path / "corpus", make_rows(12), make_rejected())
    before = contents(path)

    def start(out: str, stop: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, job, str(path), str(tmp_path / out), str(stop)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    assert start("whole", -1).wait(120) == 0
    for stop in (3, 9):
        with start("killed", stop) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "now\n"
            victim.kill()
        assert not (tmp_path / "killed" / "state.json").exists()
    made = sorted((tmp_path / "killed").glob("*/state.json"))  # of a split: what is complete
    stamps = [file.stat().st_mtime_ns for file in made]
    time.sleep(0.01)
    assert start("killed", -1).wait(120) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert [file.stat().st_mtime_ns for file in made] == stamps
    assert contents(path) == before
    assert not [file for file in tmp_path.rglob("*") if "building" in file.name]


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
