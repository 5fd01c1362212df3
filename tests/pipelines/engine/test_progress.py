"""Progress in a log: a line a minute, nothing when quiet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipelines.engine import progress as module
from pipelines.engine.desk import state_line
from pipelines.engine.progress import in_words, progress, progress_line


def test_a_line_says_rate_and_what_is_left() -> None:
    said = progress_line(120, 5000, 2400.0)  # 3 a minute, 4880 / 3 = 1627 min = 27 h
    assert said == "120 of 5,000 units in 40 min, 3 a minute, about 27 h left"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 days")],
)
def test_durations_are_in_the_unit_that_suits_them(seconds: float, said: str) -> None:
    assert in_words(seconds) == said


def test_a_log_gets_a_line_a_minute_and_none_for_the_last_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def units() -> Iterator[int]:
        for index in range(10):
            clock[0] += 25.0
            yield index

    assert list(progress(units(), 10, quiet=False)) == list(range(10))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" units")[0] for line in lines] == ["3 of 10", "6 of 10", "9 of 10"]
    state = {"actors": 2, "calls": 1200, "busy": [0.93, 0.95], "deaths": 0}
    list(progress(units(), 10, False, lambda: state_line("matte", state | {"deaths": 1})))
    line = capsys.readouterr().err.splitlines()[0]
    assert line.endswith("left; matte: 2 actors, 1,200 calls, 94 % busy, died 1 times")
    assert list(progress(units(), 10, quiet=True)) == list(range(10))
    assert capsys.readouterr().err == ""
