"""Ray Train under trouble: a node that is lost, a run that is told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.trainer_kit import same, weights
from tests.support.training_runs import losses, one_stage
from trainer.distributed.launch import launch, train_on_ray

pytestmark = pytest.mark.slow


def when(condition: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    def work() -> None:
        while not condition():
            time.sleep(0.05)
        then()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_lost_node_leaves_a_smaller_run_with_the_same_losses(tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    whole = one_stage(tmp_path, "whole", 300)
    assert launch(whole, log=lambda line: None)
    broken = one_stage(tmp_path, "broken", 300, workers=2, min_workers=1)
    small = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
    node = cluster.add_node(num_cpus=1, **small)
    cluster.wait_for_nodes()
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        lost: list[int] = []

        def lose() -> None:
            lost.append(len(losses(broken.out)))
            cluster.remove_node(node, allow_graceful=False)

        thread = when(lambda: len(losses(broken.out)) >= 40, lose)
        assert train_on_ray(broken, only=None, fresh=False, log=lambda line: None)
        thread.join(30)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert lost and 40 <= lost[0] < 300
    assert len(losses(broken.out)) == 300
    assert losses(broken.out) == pytest.approx(losses(whole.out), rel=1e-5)


def test_sigterm_saves_under_ray_and_the_same_command_goes_on(tmp_path: Path) -> None:
    whole = one_stage(tmp_path, "whole", 120)
    assert launch(whole, log=lambda line: None)
    broken = one_stage(tmp_path, "broken", 120, workers=2, save_every=1000)
    path = tmp_path / "manifest.yaml"
    path.write_text(broken.model_dump_json())
    command = [sys.executable, "-m", "layerflow.cli.main", "train", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        thread = when(
            lambda: len(losses(broken.out)) >= 10, lambda: process.send_signal(signal.SIGTERM)
        )
        said = process.communicate(timeout=300)[0]
        thread.join(5)
    assert process.returncode == 143, said
    assert 10 <= len(losses(broken.out)) < 120
    assert "the same command goes on" in said
    assert list((tmp_path / "broken/checkpoints").iterdir())
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(broken.out) == losses(whole.out)
    assert same(weights(tmp_path / "broken/export"), weights(tmp_path / "whole/export"))
