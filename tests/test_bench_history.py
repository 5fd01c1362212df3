"""`make bench`: figures are read from what benches print, and a change for the worse is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench" / "history"))
    for name in ("run", "figures", "picture"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import run

    return run


def made(history: ModuleType, printed: str) -> object:
    """A bench that prints this."""
    from figures import Bench, higher, lower

    figures = (lower("step", "ms", "takes # ms"), higher("rate", "clips/s", "clips/s: #"))
    return Bench("made", ("-c", f"print({printed!r})"), figures)


def lines(history: ModuleType, monkeypatch: pytest.MonkeyPatch, printed: str, out: Path) -> int:
    monkeypatch.setattr(history, "BENCHES", [made(history, printed)])
    monkeypatch.setattr(history, "PICTURE", out.with_suffix(".png"))
    arguments = ["run.py", "--rounds", "2", "--history", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        history.main()
    return int(ended.value.code or 0)


def test_a_change_for_the_worse_is_said_and_kept(
    history: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "history.jsonl"
    first = "small takes   9 ms\nlarge takes 1,250.5 ms\nclips/s: 80"
    assert lines(history, monkeypatch, first, out) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["figure"], line["median"], line["spread"]) for line in found] == [
        ("step", 1250.5, 0),
        ("rate", 80, 0),
    ]
    capsys.readouterr()
    assert lines(history, monkeypatch, "takes 1000 ms clips/s: 79", out) == 1
    said = capsys.readouterr().out
    assert "worse: made, rate: 80 at" in said and "worse: made, step" not in said
    assert len(out.read_text().splitlines()) == 4
    with Image.open(out.with_suffix(".png")) as picture:
        assert np.asarray(picture.convert("L")).std() > 5, "something is drawn"


def test_within_the_spread_nothing_is_worse_and_another_machine_is_no_measure(
    history: ModuleType,
) -> None:
    old = {"machine": "a", "bench": "b", "figure": "f", "commit": "c", "median": 10, "spread": 2}
    new = old | {"median": 11.9, "spread": 1, "unit": "s", "better": "lower"}
    assert not list(history.setbacks([new], [old]))
    assert list(history.setbacks([new | {"median": 12.1}], [old]))
    assert not list(history.setbacks([new | {"median": 99, "machine": "z"}], [old]))
    assert not list(history.setbacks([new | {"median": 99, "better": "higher"}], [old]))


def test_a_bench_that_fails_or_says_nothing_is_told(
    history: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert lines(history, monkeypatch, "takes 3 ms", tmp_path / "h.jsonl") == 1
    assert "prints no 'rate'" in capsys.readouterr().out
    assert not (tmp_path / "h.jsonl").exists()
    from figures import Bench

    with pytest.raises(RuntimeError, match=r"status 3: no\. luck"):
        history.output(
            Bench("x", ("-c", "import sys; sys.stderr.write('no. luck'); sys.exit(3)"), ())
        )


def test_every_command_of_the_history_is_a_script_that_is_there(history: ModuleType) -> None:
    root = Path(__file__).parents[1]
    for bench in history.BENCHES:
        first, second = bench.command[:2]
        script = second.replace(".", "/") + ".py" if first == "-m" else first
        assert (root / script).is_file(), bench.name
