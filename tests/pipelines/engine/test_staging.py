"""Faults of staging and of machines: what was lost is done again, and no job ends without it.

Workers are played in this process: what a unit does and says is the same as on Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from layerflow import files as file_tools
from layerflow.corpus.table import Corpus
from pipelines.engine import staging as module
from pipelines.engine import workers
from pipelines.engine.jobs import Outcome, make_recipe
from pipelines.engine.runner import Survey
from pipelines.engine.staging import InfrastructureError, Staging, json_part
from tests.support import ROOT
from tests.support.job_units import RECIPE, files, units, work
from tests.support.staged_damage import (
    DAMAGE,
    Row,
    Work,
    cut,
    flip,
    play,
    run,
)


def state(out: Path) -> str:
    return str(json.loads((out / "corpus.json").read_text())["state"])


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("quiet") / "c"
    run(out)
    return files(out)


# ---- damage to what was committed ---------------------------------------------------------------


@pytest.mark.parametrize("name", DAMAGE)
def test_a_unit_damaged_between_two_runs_is_done_again(
    name: str, tmp_path: Path, quiet: dict[str, bytes]
) -> None:
    out, calls = tmp_path / "c", list[int]()

    def stops(payload: dict[str, Any]) -> Outcome:
        calls.append(payload["index"])
        if calls == [0, 1, 2, 3, 4, 5]:
            raise KeyboardInterrupt
        return work(payload)

    with pytest.raises(KeyboardInterrupt):
        run(out, stops)
    DAMAGE[name](out / "staging" / units(6)[1].key)
    run(out, stops)
    assert sorted(calls[6:]) == [1, 5]
    assert files(out) == quiet


@pytest.mark.parametrize("name", DAMAGE)
def test_a_unit_damaged_while_others_run_is_done_again(
    name: str, tmp_path: Path, quiet: dict[str, bytes]
) -> None:
    out, calls = tmp_path / "c", list[int]()

    def damages(payload: dict[str, Any]) -> Outcome:
        calls.append(payload["index"])
        if payload["index"] == 5:
            DAMAGE[name](out / "staging" / units(6)[0].key)
        return work(payload)

    run(out, damages)
    assert calls == [0, 1, 2, 3, 4, 5, 0]
    assert files(out) == quiet


def test_a_disk_that_damages_everything_stops_the_job(
    tmp_path: Path, quiet: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c"
    with monkeypatch.context() as patch, pytest.raises(InfrastructureError, match="check the disk"):
        patch.setattr(Staging, "fault", lambda self, key: "rows.arrow holds other bytes")
        run(out)
    assert state(out) == "running"
    run(out)
    assert files(out) == quiet


def test_damaged_looks_are_taken_again(tmp_path: Path) -> None:
    looked: list[int] = []

    def look(payload: dict[str, Any]) -> dict[str, Any]:
        looked.append(payload["index"])
        return {"seen": payload["index"]}

    def uses(payload: dict[str, Any]) -> Outcome:
        assert json.loads(Path(payload["look"]).read_text()) == {"seen": payload["index"]}
        if looked == [0, 1, 2]:
            raise KeyboardInterrupt
        return work(payload)

    first = Survey(look, lambda found: {unit.key: {} for unit, _ in found})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", uses, 3, survey=first)
    flip(tmp_path / "c" / "staging" / "looks" / units(3)[2].key / "look.json")
    run(tmp_path / "c", uses, 3, survey=first)
    assert looked == [0, 1, 2, 2]


def test_what_foretells_the_most_work_comes_first(tmp_path: Path) -> None:
    ran: list[int] = []

    def does(payload: dict[str, Any]) -> Outcome:
        ran.append(payload["index"])
        return work(payload)

    sizes = [1, 3, 0, 3, 2]
    seen: list[int] = []

    def plan(found: Any) -> dict[str, dict[str, Any]]:
        seen.extend(unit.order for unit, _ in found)
        return {}

    survey = Survey(lambda p: {"windows": sizes[p["index"]]}, plan, lambda said: said["windows"])
    run(tmp_path / "c", does, 5, survey=survey)
    assert seen == [0, 1, 2, 3, 4], "the plan sees the order of the inputs"
    assert ran == [1, 3, 4, 0, 2]
    run(tmp_path / "quiet", work, 5)
    assert files(tmp_path / "c") == files(tmp_path / "quiet")


# ---- death --------------------------------------------------------------------------------------


MOMENTS = {
    "before its files are written": (module, "write_part", 1),
    "when some of its files are written": (module, "held_part", 1),
    "before the unit is in place": (os, "rename", 1),
    "after the unit is in place, before its report": (file_tools, "remove", 1),
}


def die_at(owner: Any, name: str, count: int) -> None:
    """Makes the call of that number to a function the last one."""
    real, calls = getattr(owner, name), 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os._exit(9)
        return real(*arguments)

    setattr(owner, name, counted)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_killed_within_a_commit_leaves_a_job_that_goes_on(
    moment: str, tmp_path: Path, quiet: dict[str, bytes]
) -> None:
    out, third = tmp_path / "c", units(6)[2].key

    def dies(payload: dict[str, Any]) -> Outcome:
        if payload["index"] == 2:
            die_at(*MOMENTS[moment])
        return work(payload)

    child = os.fork()
    if child == 0:
        run(out, dies)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    committed = moment.startswith("after")
    assert (out / "staging" / third).is_dir() == committed
    calls: list[int] = []
    summary = run(out, lambda payload: (calls.append(payload["index"]), work(payload))[1])
    assert calls == ([3, 4, 5] if committed else [2, 3, 4, 5])
    assert summary.resumed == 6 - len(calls)
    assert files(out) == quiet


def test_folders_that_killed_processes_left_are_swept_away(
    tmp_path: Path, quiet: dict[str, bytes]
) -> None:
    out = tmp_path / "c"
    left = out / "staging" / f".{units(6)[0].key}-4711"
    (left / "deep").mkdir(parents=True)
    (left / "rows.arrow").write_bytes(b"half")
    (out / "staging" / ".token-4711.tmp").write_text("half")
    seen: list[list[Path]] = []
    run(out, lambda payload: (seen.append([*left.parent.glob(".*-4711*")]), work(payload))[1])
    assert seen[0] == [] and files(out) == quiet


def test_a_job_killed_when_all_but_its_staging_was_done_is_complete(tmp_path: Path) -> None:
    run(tmp_path / "c")
    (tmp_path / "c" / "staging" / "left").mkdir(parents=True)
    assert run(tmp_path / "c").kept == 8
    assert not (tmp_path / "c" / "staging").exists()


# ---- workers ------------------------------------------------------------------------------------

Ray = Callable[..., Iterator[Row]]


def test_a_block_that_ray_runs_again_does_not_repeat_committed_units(
    tmp_path: Path, quiet: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    play(monkeypatch, lambda item, run: (run(item), run(item))[1])
    run(
        tmp_path / "c",
        lambda payload: (calls.append(payload["index"]), work(payload))[1],
        workers=2,
    )
    assert calls == [0, 1, 2, 3, 4, 5] and files(tmp_path / "c") == quiet


@pytest.mark.parametrize("reports", [True, False], ids=["that reports", "that dies"])
def test_a_worker_that_committed_is_done_whether_or_not_it_reports(
    reports: bool, tmp_path: Path, quiet: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    play(monkeypatch, lambda item, run: (run(item), reports)[0] if reports else run(item) and None)
    run(
        tmp_path / "c",
        lambda payload: (calls.append(payload["index"]), work(payload))[1],
        workers=2,
    )
    assert calls == [0, 1, 2, 3, 4, 5] and files(tmp_path / "c") == quiet


def elsewhere(folder: Path) -> Callable[[Row, Callable[[Row], Row]], Row]:
    """A worker that has a disk of its own: ``folder`` is not there while it runs."""

    def each(item: Row, run: Callable[[Row], Row]) -> Row:
        hidden = folder.with_name("hidden")
        folder.rename(hidden)
        try:
            return run(item)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            hidden.rename(folder)

    return each


def test_separate_disks_stop_the_job_before_any_work(
    tmp_path: Path, quiet: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "c", list[int]()
    play(monkeypatch, elsewhere(out))
    with pytest.raises(InfrastructureError, match="all nodes mount at the same path"):
        run(out, lambda payload: (calls.append(1), work(payload))[1], workers=2)
    assert state(out) == "running" and calls == []
    run(out)
    assert files(out) == quiet


def test_inputs_that_workers_do_not_see_stop_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    recipe = make_recipe("pasted", {"size": "24x32", "inputs": [str(videos)]}, 1)
    play(monkeypatch, elsewhere(videos))
    with pytest.raises(InfrastructureError, match=r"videos is not there on .*all nodes must see"):
        run(tmp_path / "c", recipe=recipe, workers=2)
    assert state(tmp_path / "c") == "running"
    play(monkeypatch, lambda item, run: run(item))
    assert run(tmp_path / "c", recipe=recipe, workers=2).kept == 8


def test_units_that_workers_wrote_elsewhere_stop_the_job(
    tmp_path: Path, quiet: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c"
    play(monkeypatch, lambda item, run: {"key": item["key"], "stop": "", "error": "", "told": "{}"})
    with pytest.raises(InfrastructureError, match="6 units that workers wrote are not to be seen"):
        run(out, workers=2)
    assert state(out) == "running"
    run(out)
    assert files(out) == quiet


def test_workers_of_an_earlier_driver_stop(tmp_path: Path) -> None:
    first = Staging.begin(tmp_path / "s")
    second = Staging.begin(tmp_path / "s")
    second.check_here()
    late = Staging(first.folder, first.token, patience=0.0)
    with pytest.raises(InfrastructureError, match="another run of this job has taken over"):
        late.check_here()


def failing(*bad: int, error: str = "no such GPU") -> Work:
    def fails(payload: dict[str, Any]) -> Outcome:
        if payload["index"] in bad:
            raise RuntimeError(f"{error} in process {4000 + payload['index']}")
        return work(payload)

    return fails


@pytest.mark.parametrize("bad", [(0,), (3,), (0, 5), (1, 2, 4)])
def test_a_few_poisonous_inputs_become_rejected_rows(
    bad: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, lambda item, run: run(item))
    run(tmp_path / "c", failing(*bad), workers=2)
    lost = [row for row in Corpus.open(tmp_path / "c").rejected() if row["stage"] == "worker"]
    assert [row["uri"] for row in lost] == [f"{i}.mp4" for i in bad]
    assert state(tmp_path / "c") == "complete"


@pytest.mark.parametrize("bad", [(0, 1, 2, 3), (0, 1, 2, 3, 4, 5)])
def test_a_reason_that_most_units_share_stops_the_job_until_it_is_mended_or_accepted(
    bad: tuple[int, ...],
    tmp_path: Path,
    quiet: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play(monkeypatch, lambda item, run: run(item))
    out, calls = tmp_path / "c", list[int]()
    with pytest.raises(InfrastructureError, match=rf"{len(bad)} of 6 units.*no such GPU.*accept"):
        run(out, failing(*bad), workers=2)
    assert state(out) == "running"
    shutil.copytree(out, tmp_path / "accepted")
    run(out, lambda payload: (calls.append(payload["index"]), work(payload))[1], workers=2)
    assert calls == list(bad) and files(out) == quiet
    summary = run(tmp_path / "accepted", failing(*bad), workers=2, accept_lost=True)
    reasons = [r["stage"] for r in Corpus.open(tmp_path / "accepted").rejected()]
    assert reasons.count("worker") == len(bad) and summary.resumed == 6 - len(bad)


@pytest.mark.parametrize(("seconds", "here"), [(1.0, 6), (3.9, 6), (4.1, 1), (30.0, 1)])
def test_a_light_job_runs_here_until_more_is_left_than_ray_is_worth(
    seconds: float, here: int, tmp_path: Path, quiet: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """After the first of 6 units of 4.1 s 20.5 s are left; after one of 3.9 s, 19.5 s."""
    on_ray, clock = list[str](), [0.0]
    play(monkeypatch, lambda item, run: (on_ray.append(item["key"]), run(item))[1])
    monkeypatch.setattr(workers.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(workers, "ray_runs", lambda: False)

    def slow(payload: dict[str, Any]) -> Outcome:
        clock[0] += seconds
        return work(payload)

    run(tmp_path / "c", slow, workers=None, light=True)
    assert len(on_ray) == 6 - here
    assert files(tmp_path / "c") == quiet
    monkeypatch.setattr(workers, "ray_runs", lambda: True)
    on_ray.clear()
    run(tmp_path / "d", work, workers=None, light=True)
    assert len(on_ray) == 6


def test_different_reasons_are_no_mass_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(payload: dict[str, Any]) -> Outcome:
        if payload["index"]:
            raise RuntimeError("abcdef"[payload["index"]])
        return work(payload)

    play(monkeypatch, lambda item, run: run(item))
    assert run(tmp_path / "c", fails, workers=2).rejected == 5


def test_workers_that_all_die_stop_the_job(
    tmp_path: Path, quiet: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, lambda item, run: None)
    with pytest.raises(InfrastructureError, match=r"6 of 6 units.*the worker died"):
        run(tmp_path / "c", workers=2)
    assert state(tmp_path / "c") == "running"
    run(tmp_path / "c")
    assert files(tmp_path / "c") == quiet


def test_one_unit_alone_that_kills_its_worker_is_a_rejected_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, lambda item, run: None)
    assert run(tmp_path / "c", count=1, workers=2).rejected == 1


def test_in_a_large_job_a_tenth_that_fails_alike_is_a_mass_failure() -> None:
    lost = {str(i): f"failed 2 times: OSError: node {i}" for i in range(40)}
    with pytest.raises(InfrastructureError, match="40 of 400"):
        workers._stop_if_most(lost, 400)
    workers._stop_if_most(lost, 401)
    workers._stop_if_most(dict(list(lost.items())[:19]), 190)


def test_ray_that_ends_stops_the_job(
    tmp_path: Path, quiet: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    import ray

    def ended() -> dict[str, float]:
        raise ray.exceptions.RaySystemError("the head is gone")

    monkeypatch.setattr(ray, "cluster_resources", ended)
    with pytest.raises(InfrastructureError, match=r"Ray stopped.*the head is gone"):
        run(tmp_path / "c", workers=2)
    assert state(tmp_path / "c") == "running"
    run(tmp_path / "c")
    assert files(tmp_path / "c") == quiet


@pytest.mark.slow
def test_a_node_with_a_disk_of_its_own_stops_a_job_on_ray(
    tmp_path: Path, quiet: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.engine.cluster import stop_ray

    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the cluster's workers
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    small = {"object_store_memory": 80 << 20}
    stop_ray()  # of an earlier test
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    mount = f"mount --make-rprivate / && mount -t tmpfs tmpfs {shared}"
    start = f"{Path(sys.executable).parent}/ray start --address={cluster.address} --num-cpus=1"
    command = f"{mount} && exec {start} --block --object-store-memory={80 << 20}"
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", command], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        until = time.monotonic() + 120
        while ray.cluster_resources().get("CPU", 0) < 1:
            if node.poll() is not None:
                pytest.skip("mounting a disk for one process is not allowed here")
            assert time.monotonic() < until, "the node did not come up"
            time.sleep(0.2)
        with pytest.raises(InfrastructureError, match="all nodes mount at the same path"):
            run(shared / "c", workers=1)
    finally:
        stop_ray()
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGTERM)
        node.wait(60)
        cluster.shutdown()
    assert state(shared / "c") == "running"
    run(shared / "c")
    assert files(shared / "c") == quiet


# ---- the parts themselves -----------------------------------------------------------------------


def test_a_second_commit_leaves_a_whole_unit_and_replaces_a_damaged_one(tmp_path: Path) -> None:
    staging = Staging.begin(tmp_path / "s")
    assert staging.commit("k", {"a.json": json_part([1])})["a.json"]["count"] == 1
    staging.commit("k", {"a.json": json_part([2])})
    assert staging.path("k", "a.json").read_text() == "[1]" and staging.fault("k") is None
    cut(staging.path("k", "a.json"))
    staging.commit("k", {"a.json": json_part([2])})
    assert staging.path("k", "a.json").read_text() == "[2]" and staging.fault("k") is None
    assert sorted(p.name for p in staging.folder.iterdir()) == ["k", "token"]


@pytest.mark.parametrize("text", ["", "[", "[1]", '{"recipe": 1}', "[" * 10**5])
def test_a_corpus_record_of_nonsense_is_a_clear_error(text: str, tmp_path: Path) -> None:
    run(tmp_path / "c", count=2)
    before = (tmp_path / "c" / "corpus.json").read_text()
    (tmp_path / "c" / "corpus.json").write_text(text)
    run(tmp_path / "c", count=2)  # the log says what it held
    assert (tmp_path / "c" / "corpus.json").read_text() == before
    shutil.rmtree(tmp_path / "c" / "versions")
    (tmp_path / "c" / "corpus.json").write_text(text)
    with pytest.raises(ValueError, match=r"cannot be read|another recipe"):
        run(tmp_path / "c", count=2)
    (tmp_path / "c" / "corpus.json").write_text(json.dumps({"recipe": RECIPE.hash, "state": 3}))
    with pytest.raises(ValueError, match="is damaged: its state is wrong"):
        run(tmp_path / "c", count=2)
