"""Where the workers of a run train: decided from the cluster, not from the driver's machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.train import TrainManifest, parse
from tests.support.trainer_kit import make_manifest
from trainer.distributed.launch import here, launch, run_config, scaling
from trainer.distributed.placement import Node, place, worker_resources
from trainer.distributed.processes import uses_gpu
from trainer.planning import plan
from trainer.planning.plan import find_hardware

HEAD = Node({"CPU": 4.0, "memory": 8e9})
H100 = Node({"CPU": 16.0, "GPU": 4.0, "accelerator_type:H100": 1.0}, {"zone": "a"})
A100 = Node({"CPU": 16.0, "GPU": 2.0, "accelerator_type:A100": 1.0}, {"zone": "b"})


def manifest(**changes: Any) -> TrainManifest:
    stage = {"name": "base", "steps": 1, "lr": 1e-3, "trains": "full"}
    document = {"model": "m", "stages": [stage | {"mixture": [{"latents": "v"}]}], "workers": 2}
    return parse(document | changes)


def test_a_head_without_a_gpu_trains_on_the_cluster_s_gpus() -> None:
    assert not torch.cuda.is_available()
    placed = place(manifest(), [HEAD, H100])
    assert placed.gpus and placed.accelerator == "H100"
    assert placed.said == "2 workers train on GPUs (H100), one each, of 4 in the cluster"
    mixed = place(manifest(workers=6, batch=6), [HEAD, H100, A100])
    assert mixed.gpus and mixed.accelerator is None and "unknown type" in mixed.said


def test_a_cluster_of_cpus_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # of the driver: no matter
    placed = place(manifest(), [HEAD])
    assert not placed.gpus
    assert placed.said.endswith("on CPUs, without GPUs: the cluster has none (1 node, 4 CPUs)")
    assert "gpus: false" in place(manifest(gpus=False), [HEAD, H100]).said


@pytest.mark.parametrize(
    ("changes", "nodes", "message"),
    [
        ({"gpus": True}, [HEAD], r"has no GPU \(1 node, 4 CPUs\)"),
        ({"gpus": True}, [HEAD, HEAD], r"has no GPU \(2 nodes, 8 CPUs\)"),
        ({"workers": 8}, [HEAD, H100], "room for 4 workers with a GPU each, not for 8"),
        ({"accelerator_type": "H200"}, [HEAD, H100, A100], "has H200; there are A100, H100"),
        ({"accelerator_type": "H200"}, [HEAD], "there are no accelerators"),
        ({"labels": {"zone": "c"}}, [HEAD, H100], "no node of the cluster has the labels"),
        ({"labels": {"zone": "a"}, "accelerator_type": "A100"}, [H100, A100], "has A100"),
        ({"resources_per_worker": {"CPU": 64}}, [HEAD, H100], "what one worker takes"),
        ({"resources_per_worker": {"disk": 1}}, [HEAD], r"'disk': 1.0.*'disk': 0"),
        (
            {"gpus": True, "labels": {"zone": "a"}},
            [Node({"CPU": 1.0}, {"zone": "a"}), A100],
            "no GPU",
        ),
    ],
)
def test_what_no_node_has_is_refused(
    changes: dict[str, Any], nodes: list[Node], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        place(manifest(**changes), nodes)


def test_a_run_that_must_wait_for_nodes_says_so() -> None:
    placed = place(manifest(gpus=True, workers=8), [HEAD, H100])
    assert placed.gpus and placed.said.endswith("room for 4: the run waits until more nodes join")
    elastic = place(manifest(gpus=True, workers=8, min_workers=2), [HEAD, H100])
    assert "waits" not in elastic.said
    assert "room for 4: the run waits" in place(manifest(workers=8), [HEAD]).said
    narrow = manifest(resources_per_worker={"CPU": 8}, gpus=True, workers=8)
    assert "room for 2" in place(narrow, [H100]).said


def test_the_nodes_are_those_that_carry_type_and_labels() -> None:
    one = place(manifest(accelerator_type="A100"), [HEAD, H100, A100])
    assert one.accelerator == "A100" and "of 2 in the cluster" in one.said
    zone = place(manifest(labels={"zone": "a"}), [HEAD, H100, A100])
    assert zone.accelerator == "H100"


def test_ray_is_asked_for_what_the_manifest_says(tmp_path: Path) -> None:
    said = manifest(
        resources_per_worker={"CPU": 6, "memory": 1e9},
        accelerator_type="H100",
        labels={"zone": "a"},
        max_failures=-1,
        min_workers=1,
    )
    nodes = [Node({**H100.resources, "memory": 9e9}, H100.labels)]
    config = scaling(said, place(said, nodes))
    assert config.num_workers == (1, 2) and config.use_gpu
    assert config.resources_per_worker == {"CPU": 6, "memory": 1e9, "GPU": 1}
    assert config.accelerator_type == "H100" and config.label_selector == {"zone": "a"}
    assert run_config(said, {}).failure_config.max_failures == -1
    plain = scaling(manifest(), place(manifest(), [HEAD]))
    assert not plain.use_gpu and plain.resources_per_worker == {"CPU": 1.0}
    assert plain.label_selector is None
    assert run_config(manifest(), {}).failure_config.max_failures == 3
    assert worker_resources(manifest(), True) == {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources_per_worker": {"GPU": 2}}, "GPU is not set here"),
        ({"resources_per_worker": {"CPU": 0}}, "must be above 0"),
        ({"resources_per_worker": {"CPU": float("inf")}}, "resources_per_worker"),
        ({"accelerator_type": "H100", "gpus": False}, "asks for a GPU"),
        ({"accelerator_type": "H 100"}, "accelerator_type"),
        ({"max_failures": -2}, "max_failures"),
        ({"labels": {"a": 1}}, "labels"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manifest(**changes)


def test_one_process_says_what_it_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    one = manifest(workers=1)
    assert here(one) == "trains in this process, on the CPU"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert here(one).endswith("the cluster of RAY_ADDRESS is not used, since workers is 1")
    asked = make_manifest(tmp_path).model_copy(update={"gpus": True})
    with pytest.raises(ValueError, match="torch sees no GPU in this process"):
        launch(asked, log=lambda line: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert uses_gpu(one) and uses_gpu(asked) and not uses_gpu(manifest(gpus=False))


def test_nodes_that_an_autoscaler_makes_are_waited_for_where_that_is_asked() -> None:
    waits = {"wait_for_nodes": True, "gpus": True}
    placed = place(manifest(**waits), [HEAD])
    assert placed.gpus and "room for 0: the run waits until more nodes join" in placed.said
    for more in ({"accelerator_type": "H200"}, {"labels": {"zone": "c"}}):
        assert place(manifest(**waits, **more), [HEAD, H100]).gpus
    typed = place(manifest(wait_for_nodes=True, accelerator_type="H200"), [HEAD])
    assert typed.gpus and typed.accelerator == "H200"
    assert not place(manifest(wait_for_nodes=True), [HEAD]).gpus  # nothing asks for GPUs


def test_a_type_of_gpu_asks_for_gpus_also_in_this_process(tmp_path: Path) -> None:
    said = make_manifest(tmp_path, accelerator_type="H100")
    with pytest.raises(ValueError, match="asks for a GPU, but torch sees no GPU"):
        uses_gpu(said)
    assert find_hardware(said).gpus


def test_workers_of_one_machine_share_its_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "free_memory", lambda device: 8.0)
    for workers in (1, 4):
        assert find_hardware(make_manifest(tmp_path, workers=workers)).free == 8.0 / workers
