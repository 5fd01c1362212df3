"""Networks that actors hold, on a cluster that says it has GPUs."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.steps import Step
from pipelines.engine import networks
from pipelines.engine.desk import Desk, Holder
from pipelines.engine.networks import LOOK, network
from tests.support import ROOT
from tests.support.networks import Doubler, notes

SCRIPT = """
import json, sys
from functools import partial
from pathlib import Path
import ray
from manifests.steps import Step
from pipelines.engine.desk import Desks
from pipelines.engine.runner import Place, run_units
from pipelines.engine.staging import json_part
from pipelines.engine.workers import Pool, Unit
from tests.support.networks import work

folder, workers = Path(sys.argv[1]), json.loads(sys.argv[2])
numbers = json.loads(sys.argv[3])
if workers:
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False)
units = [Unit(f"u{i:02d}", i, {"index": i, "numbers": n}) for i, n in enumerate(numbers)]
desks = Desks({"matte": Step(gpus=0.5, batch=4, concurrency=(2, 2))}, True)

def compact(staging, resumed):
    said = [json.loads(staging.read(unit.key, "said.json")) for unit in units]
    while workers and not (state := desks.states()):
        pass  # on a busy machine a desk may be silent for longer than a line of progress waits
    found = json.dumps({"said": said, "state": state if workers else {}})
    folder.with_suffix(".json").write_text(found)  # what workers print may come last

run_units(
    units, Place(folder / "staging", folder / "lock", "busy"), partial(work, folder=str(folder)),
    Pool(workers, True, desks=desks), compact=compact,
    settle=lambda unit, reason: {"said.json": json_part("lost: " + reason)},
)
"""


def run(folder: Path, workers: int, numbers: list[list[int]]) -> dict[str, Any]:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), json.dumps(workers), json.dumps(numbers)],
        cwd=ROOT, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(folder.with_suffix(".json").read_text())
    return found


@pytest.mark.slow
def test_actors_load_once_say_what_one_process_says_and_blame_no_neighbour(tmp_path: Path) -> None:
    """24 units in two actors. One input ends every actor that it meets, another one ends one by
    chance: only the first is lost, and no unit that is done is done again."""
    numbers = [[i, i + 1] for i in range(24)]
    numbers[5], numbers[9] = [77, 1], [66, 1]
    here = run(tmp_path / "here", 0, [n if n[0] != 77 else [78, 1] for n in numbers])
    numbers[3] = [-1, 0]
    there = run(tmp_path / "there", 4, numbers)
    lost = there["said"][3]
    assert lost.startswith("lost: failed 2 times") and "died 2 times on this input" in lost
    for index, (one, other) in enumerate(zip(here["said"], there["said"], strict=True)):
        if index not in (3, 5):
            assert one == other, index
    assert here["said"][7] == [(7 * 2 + 2) * 2, (8 * 2 + 2) * 2]
    assert there["said"][5] == [(77 * 2 + 2) * 2, (1 * 2 + 2) * 2]
    assert there["said"][9] == "66 is refused"
    state, folder = there["state"]["matte"], tmp_path / "there"
    assert state["actors"] == 2 and state["deaths"] >= 3
    made, ends = notes(folder, "made"), notes(folder, "poison") + notes(folder, "fell")
    assert made <= 2 + ends and notes(folder, "poison") in range(4, 7)
    runs = [notes(folder, f"unit-{index}") for index in range(24)]
    assert runs == [1 if index != 3 else 2 for index in range(24)]
    assert not notes(tmp_path / "here", "together")


class Stub:
    """A holder in this process, as the desk sees an actor. It falls at -1, and once at 77."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.running, self.most, self.falls = 0, 0, 1
        self.ready = self.busy = self
        self.answer = self

    def options(self, num_returns: int) -> Any:
        self.returns = num_returns
        return self

    def remote(self, *asked: Any) -> Any:
        if not asked:
            return asyncio.sleep(0)
        numbers = list(asked[2:])
        assert self.returns == len(numbers) + 1
        return (*[("is", 2 * n) for n in numbers], self._work(numbers))

    async def _work(self, numbers: list[int]) -> None:
        from ray.exceptions import RayActorError

        self.running += 1
        self.most = max(self.most, self.running)
        self.batches.append(numbers)
        await asyncio.sleep(0.001)
        self.running -= 1
        if -1 in numbers or (77 in numbers and self.falls):
            self.falls -= 77 in numbers
            raise RayActorError


class Stubs(Desk):
    def _hire(self) -> Any:
        self.hired: list[Stub] = [*getattr(self, "hired", []), Stub()]
        return self.hired[-1]


def asked(desk: Stubs, numbers: list[int], least: int = 1) -> list[Any]:
    """What the desk says of each number, all asked at once."""

    async def run() -> list[Any]:
        await desk.begin(least)
        await desk.ready()
        calls = [desk.ask(b"n", "__call__", [n]) for n in numbers]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    return asyncio.run(run())


def test_only_the_call_that_ends_its_actor_by_itself_is_given_up() -> None:
    """77 ends it once: neither it nor what was asked beside it is blamed."""
    desk = Stubs("matte", {}, 4, 1)
    numbers = [1, 2, 77, 3, 4, -1, 5, 6, 7, 8]
    said = asked(desk, numbers)
    for number, answer in zip(numbers, said, strict=True):
        if number == -1:
            assert isinstance(answer, RuntimeError) and "2 times on this input" in str(answer)
        else:
            assert answer == [("is", 2 * number)]
    (stub,) = desk.hired
    alone = [batch for batch in stub.batches if batch == [-1]]
    assert len(alone) == 2 and stub.most <= 2
    together = [n for batch in stub.batches if len(batch) > 1 for n in batch]
    assert together.count(-1) == together.count(77) == 1


def test_calls_that_wait_go_together_and_more_actors_are_hired_for_them() -> None:
    desk = Stubs("matte", {}, 8, 3)
    assert asked(desk, [*range(40)]) == [[("is", 2 * n)] for n in range(40)]
    assert len(desk.hired) == 3
    batches = [batch for stub in desk.hired for batch in stub.batches]
    assert sorted(n for batch in batches for n in batch) == [*range(40)]
    assert max(map(len, batches)) == 8 and all(stub.most <= 2 for stub in desk.hired)
    few = Stubs("matte", {}, 1, 3)
    asked(few, [1], least=1)
    assert len(few.hired) == 1


def test_without_a_desk_a_network_is_made_and_called_here(tmp_path: Path) -> None:
    made = network("matte", Doubler, str(tmp_path))
    assert isinstance(made, Doubler) and notes(tmp_path, "made") == 1


def test_an_actor_makes_a_network_once_and_answers_calls_together(tmp_path: Path) -> None:
    """Equal requests have one network, also where they were pickled apart; an error is that of one
    call, and what cannot be made stops the job."""
    holder = Holder()
    about = [pickle.dumps((Doubler, (str(tmp_path),)), protocol) for protocol in (4, 5)]
    calls = [((np.array([n]),), {}) for n in (1, 2)]
    assert about[0] != about[1]
    *answers, end = holder.answer(about[0], "__call__", *calls)
    assert [said for said, _ in answers] == ["is", "is"] and end is None
    assert [found.tolist() for _, found in answers] == [[2], [4]]
    assert notes(tmp_path, "together") == 1
    refused = ((np.array([66]),), {})
    *answers, _ = holder.answer(about[1], "__call__", refused, calls[0])
    assert answers[0][0] == "error" and str(answers[0][1]) == "66 is refused"
    assert answers[1][1].tolist() == [2]
    assert holder.answer(about[1], LOOK + "factor", ((), {}))[0] == ("is", 2)
    assert notes(tmp_path, "made") == 1
    stop = holder.answer(pickle.dumps((Doubler, ())), "__call__", calls[0])[0]
    assert stop[0] == "stop" and "does not start" in stop[1]


def test_a_network_that_outlives_its_job_in_a_worker_goes_on_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(networks._desks, "matte", object())
    served = network("matte", Doubler, str(tmp_path))
    assert not isinstance(served, Doubler) and not notes(tmp_path, "made")
    monkeypatch.delitem(networks._desks, "matte")
    assert served(np.array([4])).tolist() == [8] and served.factor == 2


def test_steps_say_how_many_actors() -> None:
    assert Step(concurrency=(1, 8)).gpus == 0.25
    for wrong in ((0, 1), (3, 2)):
        with pytest.raises(ValueError, match="1 <= LEAST <= MOST"):
            Step(concurrency=wrong)
