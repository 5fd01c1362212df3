"""A job on two raylets that share no folder: its corpus lies in a bucket."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerflow.corpus.published import open_corpus
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus
from pipelines.engine.jobs import Outcome, Unit, run_job
from tests.support import ROOT
from tests.support.job_units import RECIPE, units, work

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
