"""The plan of very many videos, which workers look at."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine.asking import answers
from pipelines.engine.staging import InfrastructureError
from pipelines.engine.workers import Pool
from pipelines.inputs.listing import InputVideo, list_sources
from pipelines.mine import plan
from pipelines.mine.plan import plan_units
from tests.support.mined import green_screen, options


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Videos with and without sidecars, one that is none, one of which nothing good is said."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for seed in range(5):
        green_screen(videos / f"{seed}.mp4", seed, frames=20 + 20 * (seed == 3))
    (videos / "0.json").write_text(json.dumps({"caption": "a disc", "licence": "CC0-1.0"}))
    (videos / "1.json").write_text("{")
    (videos / "none.mp4").write_bytes(b"no film")
    return videos


def test_workers_plan_what_one_process_plans(
    folder: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(folder, folder / "out", span=1.5)
    list(answers([{}], dict, Pool(2)))
    monkeypatch.chdir(folder.parent)  # the workers started elsewhere
    sources = list_sources(["videos"])
    here = plan_units(sources, asked)
    monkeypatch.setattr(plan, "MANY", 2)
    monkeypatch.setattr(plan, "BATCH", 2)
    assert plan_units(sources, asked, pool=Pool(2)) == here
    assert len(here) > len(sources) == 6
    assert [bool(unit.payload.get("problem")) for unit in here].count(True) == 2


def test_a_worker_that_does_not_see_the_videos_stops_the_plan(
    folder: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MANY", 0)
    gone = [InputVideo(str(folder / "a" / "1.mp4"), "1.mp4", root=str(folder / "a"))]
    with pytest.raises(InfrastructureError, match=r"the input .*videos/a is not there on"):
        plan_units(gone, options(folder, folder / "out"), pool=Pool(2))


def test_answers_come_in_order(local_ray: None) -> None:
    def slow_first(asked: Mapping[str, Any]) -> int:
        time.sleep(0.2 * (asked["number"] == 0))
        return int(asked["number"]) ** 2

    asked = ({"number": number} for number in range(40))
    assert list(answers(asked, slow_first, Pool(2))) == [number**2 for number in range(40)]


@pytest.mark.parametrize(("number", "says"), [(3, "ZeroDivisionError"), (4, "a worker died twice")])
def test_what_cannot_be_answered_stops(number: int, says: str, local_ray: None) -> None:
    def falls(asked: Mapping[str, Any]) -> float:
        if asked["number"] == 4:
            os._exit(1)
        return 1 / (3 - asked["number"])

    with pytest.raises(InfrastructureError, match=says):
        list(answers([{"number": 0}, {"number": number}, {"number": 1}], falls, Pool(2)))
