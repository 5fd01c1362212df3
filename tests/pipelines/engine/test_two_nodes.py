"""A job on two raylets that share no folder: its corpus lies in a bucket."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from layerflow.corpus.latents import Latents
from layerflow.corpus.published import open_corpus
from layerflow.corpus.remote.latents import open_latents
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus
from layerflow.documents import read_json
from layerflow.model.presets import init_directory
from manifests.pack import PackOptions
from pipelines.encode import job as encode
from pipelines.engine.jobs import Outcome, Unit, run_job
from pipelines.mine.job import run_mine
from pipelines.pack.job import run_pack
from pipelines.paste.job import run_paste
from tests.support import ROOT
from tests.support.driver import encode_row_by_row, lose_the_driver
from tests.support.job_units import RECIPE, units, work
from tests.support.mined import green_screen
from tests.support.mined import options as mine_options
from tests.support.packed import disc, slope, write
from tests.support.pasted import backdrops, stills
from tests.support.pasted import options as paste_options
from tests.support.trainer_kit import same, weights
from tests.support.training_runs import losses, one_stage
from trainer.distributed.launch import launch

pytest.importorskip("s3fs", reason="needs the extra s3")
pytest.importorskip("moto", reason="needs the extra dev")
pytestmark = pytest.mark.slow


@pytest.fixture
def bucket() -> Iterator[Any]:
    from tests.support.s3 import s3_bucket

    with s3_bucket("corpora") as system:
        yield system


@pytest.fixture
def nodes(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes, each with its own folder for temporary files, and the second node."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()  # one that another test started, with the environment of then
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = Cluster(initialize_head=True, head_node_args=own_disk(tmp_path / "one"))
    try:
        second = cluster.add_node(**own_disk(tmp_path / "two"))
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


def own_disk(folder: Path) -> dict[str, Any]:
    """A node of one CPU with its own folder for temporary files, and its own cache."""
    folder.mkdir()
    places = {"TMPDIR": str(folder), "LAYERFLOW_CACHE": str(folder / "cache")}
    return {"object_store_memory": 80 << 20, "num_cpus": 1, "env_vars": places}


def lose_a_node(
    cluster: Any, folder: Path, job: Callable[[], Any], begun: Callable[[], object]
) -> Any:
    """What a job returns: once something has begun, the node that is not the head is killed, and
    another one joins."""
    (node,) = (each for each in cluster.list_all_nodes() if each is not cluster.head_node)
    with ThreadPoolExecutor(1) as thread:  # this one changes the cluster: Ray wants the main one
        running = thread.submit(job)
        while not begun():
            assert not running.done(), "nothing was lost while it ran"
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(**own_disk(folder))
        return running.result()


def test_a_node_that_goes_away_costs_nothing_but_its_running_units(
    nodes: Any, tmp_path: Path
) -> None:
    cluster, second = nodes
    out = "s3://corpora/mined"

    def slowly(payload: dict[str, Any]) -> Outcome:
        time.sleep(0.3)
        return work(payload)

    def lose() -> None:
        while sum(name.endswith("unit.json") for name in Store(out).names("staging")) < 5:
            time.sleep(0.1)
        cluster.remove_node(second, allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    summary = run_job(units(24), slowly, out=out, recipe=RECIPE, workers=2, quiet=True)
    thread.join(60)
    assert len(cluster.list_all_nodes()) == 1
    quiet = tmp_path / "quiet"
    run_job(units(24), work, out=quiet, recipe=RECIPE, workers=0, quiet=True)
    here, there = Corpus.open(quiet), open_corpus(out)
    assert isinstance(there, Corpus)
    assert there.shards == here.shards and there.rejected() == here.rejected()
    assert summary.kept == len(here) == 32
    assert not [name for name in Store(out).names() if name.startswith("staging")]


def test_inputs_of_another_disk_stop_the_job(nodes: Any, tmp_path: Path) -> None:
    """Files that this machine listed, and that no node finds."""

    def reads(payload: dict[str, Any]) -> Outcome:
        try:
            Path(payload["uri"]).read_bytes()
        except OSError as error:
            from layerflow.corpus.table import rejected_row

            reason = str(error)
            row = rejected_row("a.mp4", "read", reason, kind="pasted", recipe=RECIPE.hash)
            return Outcome(rejected=[row])
        return work(payload)

    listed = [Unit(f"{i:020x}", i, {"index": i, "uri": f"/only/here/{i}"}) for i in range(3)]
    out = "s3://corpora/blind"
    with pytest.raises(OSError, match=r"found none of 3 inputs.*every node sees"):
        run_job(listed, reads, out=out, recipe=RECIPE, workers=2, quiet=True)
    with pytest.raises(ValueError, match="holds no corpus"):
        open_corpus(out)
    assert os.environ["RAY_ADDRESS"]
    how = {"workers": 2, "quiet": True, "accept_lost": True}
    assert run_job(listed, reads, out=out, recipe=RECIPE, **how).rejected == 3  # type: ignore[arg-type]


def staged(out: str) -> int:
    return sum(name.endswith("unit.json") for name in Store(out).names("staging"))


def token(place: Store) -> bytes:
    """Of the driver that is in charge of a job; empty without one."""
    try:
        return place.read("staging/token")
    except FileNotFoundError:
        return b""


def another(in_charge: Callable[[], bytes], first: bytes) -> bool:
    return in_charge() not in (first, b"")


def test_jobs_from_and_to_a_bucket_make_what_one_process_makes_here(
    nodes: Any, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mine, paste and pack into a bucket, then encode: the driver of each is killed, and when
    another one goes on a node goes away."""
    cluster, _ = nodes
    local, there = tmp_path / "inputs", "s3://corpora/inputs"
    (local / "films").mkdir(parents=True)
    for seed in (1, 2):
        green_screen(local / "films" / f"{seed}.mp4", seed)
    stills(local / "fg", 2), backdrops(local / "bg", 1)
    write(tmp_path / "sets/ball.png", disc())  # pack takes no folders of buckets
    write(tmp_path / "sets/ball.bg.png", slope())
    bucket.put(str(local), there, recursive=True)

    def jobs(root: str) -> dict[str, tuple[Callable[..., object], Any]]:
        def out(name: str) -> dict[str, Any]:
            return {"out": f"{root}/{name}"}

        films = mine_options(local, local).model_copy(
            update={"inputs": [f"{there}/films"], **out("mined")}
        )
        drawn: Any = {"foregrounds": [f"{there}/fg"], "backgrounds": [f"{there}/bg"]}
        drawn = paste_options(tmp_path, local, local, **out("pasted"), count=6, **drawn)
        packed = PackOptions(inputs=[str(tmp_path / "sets")], **out("packed"))
        return {
            "mined": (run_mine, films),
            "pasted": (run_paste, drawn),
            "packed": (run_pack, packed),
        }

    quiet, far = str(tmp_path / "quiet"), "s3://corpora/far"
    for name, (job, options) in jobs(quiet).items():
        job(options, workers=0, quiet=True)
        place, again = Store(f"{far}/{name}"), jobs(far)[name][1]
        in_charge = partial(token, place)
        lose_the_driver(tmp_path / f"{name}-driver", in_charge, job, again, workers=1, quiet=True)
        goes_on = partial(job, again, workers=2, quiet=True)
        lose_a_node(cluster, tmp_path / name, goes_on, partial(another, in_charge, in_charge()))
        one, other = Corpus.open(f"{quiet}/{name}"), open_corpus(f"{far}/{name}")
        assert isinstance(other, Corpus) and one.shards == other.shards and len(one)
        assert one.rejected() == other.rejected() and not in_charge()
    model, out = init_directory(tmp_path / "model", "tiny"), "s3://corpora/latents"
    corpora = [f"{far}/{name}" for name in ("mined", "pasted", "packed")]
    how: dict[str, Any] = {"model": model, "size": (32, 40), "quiet": True}
    lose_the_driver(
        tmp_path / "encode-driver", lambda: staged(out) >= 2,
        encode_row_by_row, corpora, out=out, workers=1, **how,
    )  # fmt: skip
    before = staged(out)
    monkeypatch.setattr(encode, "UNIT_ROWS", 1)
    done = lose_a_node(
        cluster,
        tmp_path / "encoded",
        partial(encode.run_encode, corpora, out=out, workers=2, **how),
        lambda: staged(out) > before,
    )
    here = [f"{quiet}/{name}" for name in ("mined", "pasted", "packed")]
    encode.run_encode(here, out=tmp_path / "latents", workers=0, **how)
    latents, afar = Latents.open(tmp_path / "latents"), open_latents(out)
    assert before >= 2 and done.clips == len(latents) == len(afar) > 4
    assert [latents.raw(i) for i in range(len(latents))] == [afar.raw(i) for i in range(len(afar))]
    assert list(latents.prompt_rows()) == list(afar.prompt_rows()) and not staged(out)


def test_training_from_and_to_a_bucket_outlives_a_node(
    nodes: Any, bucket: Any, tmp_path: Path
) -> None:
    """Nothing of the run lies on a disk that two nodes see; another driver goes on for one that was
    killed, and a new node takes the lost one's place. The same command once more has nothing to do,
    and --fresh does all again."""
    cluster, _ = nodes
    whole = one_stage(tmp_path, "whole", 120, workers=2)
    assert launch(whole, log=lambda line: None)
    for name in ("video", "model"):
        bucket.put(str(tmp_path / name), f"s3://corpora/{name}", recursive=True)
        shutil.rmtree(tmp_path / name)
    out, latents = "s3://corpora/runs/one", {"video": "s3://corpora/video"}
    there = {"latents": latents, "model": "s3://corpora/model", "out": out}
    afar = whole.model_copy(update=there)
    said: list[str] = []

    def saved(step: int) -> bool:
        name = f"/base-{step:08}/_COMPLETE"
        return any(name in each for each in Store(out).names("checkpoints"))

    lose_the_driver(tmp_path / "driver", partial(saved, 30), launch, afar)
    assert lose_a_node(
        cluster, tmp_path / "three", lambda: launch(afar, log=said.append), partial(saved, 60)
    )
    assert any(line.startswith(f"goes on from {out}: brought") for line in said)
    assert any("base: goes on after step" in line for line in said)
    bucket.get(f"{out}/export", str(tmp_path / "export"), recursive=True)
    assert same(weights(tmp_path / "export"), weights(tmp_path / "whole/export"))
    bucket.get(f"{out}/metrics.csv", str(tmp_path / "metrics.csv"))
    assert losses(tmp_path) == losses(whole.out) and len(losses(tmp_path)) == 120
    assert not [path for node in ("one", "three") for path in (tmp_path / node).glob("layerflow-*")]
    assert not Store(out).names(".ray")
    said.clear()
    assert launch(afar, log=said.append) and "base: done before, 120 steps" in said
    with pytest.raises(ValueError, match="holds a run of another manifest"):
        launch(afar.model_copy(update={"seed": 8}), log=said.append)
    assert launch(afar.model_copy(update={"seed": 8}), fresh=True, log=said.append)
    bucket.get(f"{out}/run.json", str(tmp_path / "run.json"))
    assert read_json(tmp_path / "run.json")["manifest"]["seed"] == 8
