"""A job on two raylets that share no folder: its corpus lies in a bucket."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerflow.corpus.latents import Latents
from layerflow.corpus.published import open_corpus
from layerflow.corpus.remote.latents import open_latents
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus
from layerflow.model.presets import init_directory
from manifests.pack import PackOptions
from pipelines.encode import job as encode
from pipelines.engine.jobs import Outcome, Unit, run_job
from pipelines.mine.job import run_mine
from pipelines.pack.job import run_pack
from pipelines.paste.job import run_paste
from tests.support import ROOT
from tests.support.job_units import RECIPE, units, work
from tests.support.mined import green_screen
from tests.support.mined import options as mine_options
from tests.support.packed import disc, slope, write
from tests.support.pasted import backdrops, stills
from tests.support.pasted import options as paste_options

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
    small = {"object_store_memory": 80 << 20, "num_cpus": 1}
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**small, "env_vars": {"TMPDIR": str(folders[0])}},
    )
    try:
        second = cluster.add_node(**small, env_vars={"TMPDIR": str(folders[1])})
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


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


ENCODE = """
import sys
from pipelines.encode import job
job.UNIT_ROWS = 1
how = {"size": (32, 40), "workers": 1, "quiet": True}
job.run_encode(sys.argv[3:], model=sys.argv[1], out=sys.argv[2], **how)
"""


def staged(out: str) -> int:
    return sum(name.endswith("unit.json") for name in Store(out).names("staging"))


def test_jobs_from_and_to_a_bucket_make_what_one_process_makes_here(
    nodes: Any, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mine, paste and pack into a bucket, then encode: its driver is killed, and when another one
    goes on a node goes away."""
    cluster, second = nodes
    local, there = tmp_path / "inputs", "s3://corpora/inputs"
    (local / "films").mkdir(parents=True)
    for seed in (1, 2):
        green_screen(local / "films" / f"{seed}.mp4", seed)
    stills(local / "fg", 2), backdrops(local / "bg", 1)
    write(tmp_path / "sets/ball.png", disc())  # pack takes no folders of buckets
    write(tmp_path / "sets/ball.bg.png", slope())
    bucket.put(str(local), there, recursive=True)

    def made(root: str, workers: int) -> list[str]:
        how: dict[str, Any] = {"workers": workers, "quiet": True}
        outs = [f"{root}/{name}" for name in ("mined", "pasted", "packed")]
        films = {"inputs": [f"{there}/films"], "out": outs[0]}
        run_mine(mine_options(local, local).model_copy(update=films), **how)
        inputs: Any = {"foregrounds": [f"{there}/fg"], "backgrounds": [f"{there}/bg"]}
        run_paste(paste_options(tmp_path, local, local, out=outs[1], count=3, **inputs), **how)
        run_pack(PackOptions(inputs=[str(tmp_path / "sets")], out=outs[2]), **how)
        return outs

    quiet, far = made(str(tmp_path / "quiet"), 0), made("s3://corpora/far", 2)
    for here, afar in zip(quiet, far, strict=True):
        one, other = Corpus.open(here), open_corpus(afar)
        assert isinstance(other, Corpus) and one.shards == other.shards and len(one)
        assert one.rejected() == other.rejected()
    model, out = init_directory(tmp_path / "model", "tiny"), "s3://corpora/latents"
    driver = subprocess.Popen([sys.executable, "-c", ENCODE, str(model), out, *far], cwd=ROOT)
    while staged(out) < 2 and driver.poll() is None:
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    before = staged(out)
    monkeypatch.setattr(encode, "UNIT_ROWS", 1)
    lost = threading.Timer(1.0, cluster.remove_node, (second,), {"allow_graceful": False})
    lost.start()
    how: dict[str, Any] = {"model": model, "size": (32, 40), "quiet": True}
    done = encode.run_encode(far, out=out, workers=2, **how)
    lost.join()
    encode.run_encode(quiet, out=tmp_path / "latents", workers=0, **how)
    one, other = Latents.open(tmp_path / "latents"), open_latents(out)
    assert before >= 2 and done.clips == len(one) == len(other) > 4
    assert [one.raw(i) for i in range(len(one))] == [other.raw(i) for i in range(len(other))]
    assert list(one.prompt_rows()) == list(other.prompt_rows()) and not staged(out)
