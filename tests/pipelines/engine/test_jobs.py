"""The job harness: staging, resume, refusal, compaction."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from layerflow.corpus.table import Corpus, rejected_row
from layerflow.files import OWNER
from pipelines.engine import cutting
from pipelines.engine.jobs import Outcome, Unit, make_recipe, run_job, unit_key
from pipelines.engine.staging import InfrastructureError
from tests.support import ROOT
from tests.support.corpus_rows import make_row
from tests.support.job_units import RECIPE, files, units, work


def test_rows_stand_in_unit_order_and_reasons_are_counted(tmp_path: Path) -> None:
    shuffled = [units(6)[i] for i in (3, 0, 5, 1, 4, 2)]
    summary = run_job(shuffled, work, out=tmp_path / "c", recipe=RECIPE, workers=0, quiet=True)
    assert (summary.kept, summary.rejected) == (8, 2)
    assert summary.reasons == {"gate: score below its bound": 2}
    expected = [make_row(2 * i + k)["id"] for i in (0, 1, 3, 4) for k in (0, 1)]
    assert Corpus.open(tmp_path / "c").ids() == expected
    assert not (tmp_path / "c" / "staging").exists()


def test_a_job_that_stopped_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    calls: list[int] = []

    def stops(payload: dict) -> Outcome:
        if payload["index"] == 4 and len(calls) < 5:
            calls.append(-1)
            raise KeyboardInterrupt
        calls.append(payload["index"])
        return work(payload)

    quiet = run_job(units(6), work, out=tmp_path / "quiet", recipe=RECIPE, workers=0, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        run_job(units(6), stops, out=tmp_path / "c", recipe=RECIPE, workers=0, quiet=True)
    summary = run_job(units(6), stops, out=tmp_path / "c", recipe=RECIPE, workers=0, quiet=True)
    assert calls == [0, 1, 2, 3, -1, 4, 5]
    assert summary.resumed == 4
    assert summary.kept == quiet.kept
    assert files(tmp_path / "c") == files(tmp_path / "quiet")


def test_a_finished_job_does_nothing_again(tmp_path: Path) -> None:
    first = run_job(units(3), work, out=tmp_path / "c", recipe=RECIPE, workers=0, quiet=True)

    def never(payload: dict) -> Outcome:
        raise AssertionError("ran again")

    again = run_job(units(3), never, out=tmp_path / "c", recipe=RECIPE, workers=0, quiet=True)
    assert (again.kept, again.rejected, again.reasons) == (
        first.kept,
        first.rejected,
        first.reasons,
    )


def test_another_recipe_other_inputs_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "c"
    run_job(units(3), work, out=out, recipe=RECIPE, workers=0, quiet=True)
    before = files(out)
    other = make_recipe("pasted", {"size": "48x64"}, 1)
    with pytest.raises(ValueError, match="size: '24x32' there, '48x64' asked"):
        run_job(units(3), work, out=out, recipe=other, workers=0, quiet=True)
    with pytest.raises(ValueError, match="other inputs"):
        run_job(units(4), work, out=out, recipe=RECIPE, workers=0, quiet=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        run_job(units(3), work, out=foreign, recipe=RECIPE, workers=0, quiet=True)
    assert files(out) == before
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_two_jobs_cannot_write_one_corpus(tmp_path: Path) -> None:
    out = tmp_path / "c"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another job"):
            run_job(units(1), work, out=out, recipe=RECIPE, workers=0, quiet=True)


def test_equal_content_is_kept_once(tmp_path: Path) -> None:
    twice = [Unit(unit_key(i), i, {"index": 0, "uri": f"{i}.mp4"}) for i in range(2)]
    summary = run_job(twice, work, out=tmp_path / "c", recipe=RECIPE, workers=0, quiet=True)
    assert (summary.kept, summary.rejected) == (2, 2)
    reasons = {row["stage"] for row in Corpus.open(tmp_path / "c").rejected()}
    assert reasons == {"duplicates"}


def test_paths_do_not_decide_the_recipe_but_options_do() -> None:
    a = make_recipe("mined", {"out": "a", "size": "1x1", "weights": "/x/net.onnx"}, 1)
    b = make_recipe("mined", {"out": "b", "size": "1x1", "weights": "/y/net.onnx"}, 1)
    assert a.hash == b.hash
    assert a.hash != make_recipe("mined", {"size": "1x2"}, 1).hash
    assert a.hash != make_recipe("mined", {"size": "1x1", "weights": "/x/net.onnx"}, 2).hash


def test_workers_of_a_local_ray_are_no_nicer_than_who_starts_them(local_ray: None) -> None:
    import ray

    from pipelines.engine.cluster import start_ray

    start_ray(2)
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    assert json.loads((session / OWNER).read_text())["pid"] == os.getpid()


def test_on_ray_a_unit_whose_worker_always_dies_is_a_rejected_row(
    tmp_path: Path, local_ray: None
) -> None:
    def dies(payload: dict) -> Outcome:
        if payload["index"] == 1:
            os._exit(3)
        if payload["index"] == 2:
            raise KeyError("a mistake")
        return Outcome(
            rejected=[rejected_row(payload["uri"], "gate", "no", kind="pasted", recipe="r")]
        )

    summary = run_job(units(3), dies, out=tmp_path / "c", recipe=RECIPE, workers=2, quiet=True)
    assert summary.rejected == 3
    lost = [r for r in Corpus.open(tmp_path / "c").rejected() if r["stage"] == "worker"]
    assert [(row["uri"], row["reason"]) for row in lost] == [
        ("1.mp4", "the worker died 2 times on this unit"),
        ("2.mp4", "failed 2 times: KeyError: 'a mistake'"),
    ]


def test_units_that_ray_runs_beside_each_other_give_the_same_rows(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(units(6), work, out=tmp_path / "quiet", recipe=RECIPE, workers=0, quiet=True)
    monkeypatch.setattr(cutting, "SHARD_BYTES", 1)  # a shard a unit, so that workers write them
    summary = run_job(units(6), work, out=tmp_path / "c", recipe=RECIPE, workers=2, quiet=True)
    assert (summary.kept, summary.rejected) == (8, 2)
    there, quiet = Corpus.open(tmp_path / "c"), Corpus.open(tmp_path / "quiet")
    assert len(there.shards) == 4
    assert list(there.rows()) == list(quiet.rows())


def test_a_worker_asks_no_desk_of_an_earlier_job(tmp_path: Path, local_ray: None) -> None:
    def said(payload: dict[str, Any], reason: str) -> Outcome:
        return Outcome(rejected=[rejected_row(payload["uri"], "gate", reason, kind="", recipe="r")])

    def leaves(payload: dict[str, Any]) -> Outcome:
        from pipelines.engine import networks

        time.sleep(0.1)  # so that both workers have some
        networks._desks["matte"] = "an actor that ended"
        return said(payload, "left")

    def looks(payload: dict[str, Any]) -> Outcome:
        from pipelines.engine import networks

        return said(payload, f"{len(networks._desks)} desks")

    how: dict[str, Any] = {"recipe": RECIPE, "workers": 2, "quiet": True}
    run_job(units(6), leaves, out=tmp_path / "first", **how)
    run_job(units(6), looks, out=tmp_path / "second", **how)
    assert {row["reason"] for row in Corpus.open(tmp_path / "second").rejected()} == {"0 desks"}


class Elsewhere:
    """What a worker cannot unpickle, as a module that its node does not have."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("a_module_of_the_driver",)


def test_work_that_a_worker_cannot_load_is_named(tmp_path: Path, local_ray: None) -> None:
    there = Elsewhere()

    def needs(payload: dict[str, Any]) -> Outcome:
        return Outcome(rejected=[{"reason": str(there)}])

    with pytest.raises(InfrastructureError, match="a_module_of_the_driver"):
        run_job(units(3), needs, out=tmp_path / "c", recipe=RECIPE, workers=2, quiet=True)


def test_kill_9_of_the_driver_and_again_gives_the_same_rows(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            sys.path.insert(0, {str(ROOT)!r})
            from pathlib import Path
            from tests.support.job_units import RECIPE, units, work
            from pipelines.engine.jobs import run_job

            def slow(payload):
                time.sleep(0.25)
                return work(payload)

            run_job(units(8), slow, out=Path(sys.argv[1]), recipe=RECIPE, workers=0, quiet=True)
            """
        )
    )
    out = tmp_path / "c"
    child = subprocess.Popen([sys.executable, str(script), str(out)])
    deadline = time.monotonic() + 60
    while len(list((out / "staging").glob("[0-9a-f]*"))) < 3:
        assert time.monotonic() < deadline, "the job did not get going"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert json.loads((out / "corpus.json").read_text())["state"] == "running"
    summary = run_job(units(8), work, out=out, recipe=RECIPE, workers=0, quiet=True)
    assert summary.resumed >= 3
    run_job(units(8), work, out=tmp_path / "quiet", recipe=RECIPE, workers=0, quiet=True)
    assert files(out) == files(tmp_path / "quiet")


@pytest.mark.parametrize("when", ["in a unit", "in the last step"])
def test_a_full_disk_stops_the_job_and_nothing_is_lost(
    when: str, small_disk: Path, tmp_path: Path
) -> None:
    out, ballast = small_disk / "c", small_disk / "ballast"
    quiet = tmp_path / "quiet"
    run_job(units(6), work, out=quiet, recipe=RECIPE, workers=0, quiet=True)
    calls = 0

    def filling(payload: dict) -> Outcome:
        nonlocal calls
        calls += 1
        if calls == (3 if when == "in a unit" else 6):
            outcome = work(payload)
            free = os.statvfs(small_disk)
            left = 4096 if when == "in a unit" else 40960
            ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
            return outcome
        return work(payload)

    with pytest.raises(OSError, match="No space left"):
        run_job(units(6), filling, out=out, recipe=RECIPE, workers=0, quiet=True)
    assert json.loads((out / "corpus.json").read_text())["state"] == "running"
    ballast.unlink()
    summary = run_job(units(6), work, out=out, recipe=RECIPE, workers=0, quiet=True)
    assert summary.resumed == (2 if when == "in a unit" else 6)
    assert files(out) == files(quiet)


def test_a_full_disk_is_told_through_ray(small_disk: Path, local_ray: None) -> None:
    def bulky(payload: dict) -> Outcome:
        reason = "x" * 1_500_000
        row = rejected_row(payload["uri"], "gate", reason, kind="pasted", recipe="r")
        return Outcome(rejected=[row])

    with pytest.raises(OSError, match="No space left"):
        run_job(units(4), bulky, out=small_disk / "c", recipe=RECIPE, workers=2, quiet=True)
    assert not list((small_disk / "c" / "staging").glob(".*"))


@pytest.mark.slow
def test_a_node_that_goes_away_in_mid_job_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    import ray
    from ray.cluster_utils import Cluster

    from pipelines.engine.cluster import stop_ray

    stop_ray()  # the one of the tests before
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the cluster's workers

    def slow(payload: dict) -> Outcome:
        time.sleep(0.5)
        return work(payload)

    quiet = tmp_path / "quiet"
    run_job(units(12), work, out=quiet, recipe=RECIPE, workers=0, quiet=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    out = tmp_path / "c"
    try:
        doomed = cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False)

        def remove() -> None:
            while len(list((out / "staging").glob("[0-9a-f]*"))) < 2:
                time.sleep(0.05)
            cluster.remove_node(doomed, allow_graceful=False)

        thread = threading.Thread(target=remove)
        thread.start()
        summary = run_job(units(12), slow, out=out, recipe=RECIPE, workers=3, quiet=True)
        thread.join()
        assert sum(node["Alive"] for node in ray.nodes()) == 1
    finally:
        stop_ray()
        cluster.shutdown()
    assert files(out) == files(quiet) and summary.kept == 16
