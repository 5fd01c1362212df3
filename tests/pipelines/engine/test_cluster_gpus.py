"""Jobs that ask for a GPU, on clusters with and without: nothing of it is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manifests.mine import MineOptions
from manifests.steps import Step
from pipelines.engine import cluster, desk
from pipelines.engine.staging import InfrastructureError
from pipelines.matting import make_backend, onnx_session
from pipelines.mine import job as mine
from tests.support.tiny_networks import make_onnx


@pytest.fixture
def resources(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the cluster says it has; no Ray is started."""
    import ray

    said = {"CPU": 4.0}
    monkeypatch.setattr(cluster, "start_ray", lambda workers=None: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: said)
    return said


def options(folder: Path, **changes: Any) -> MineOptions:
    (folder / "videos").mkdir(exist_ok=True)
    (folder / "videos" / "a.mp4").write_bytes(b"no film")
    about = {"inputs": [str(folder / "videos")], "out": str(folder / "out"), "size": "32x32"}
    return MineOptions.model_validate(about | changes)


@pytest.mark.parametrize(
    "asked", [{"device": "cuda"}, {"captions": {"model": "/models/vlm", "device": "cuda:0"}}]
)
def test_a_job_for_gpus_is_refused_where_the_cluster_has_none(
    tmp_path: Path, resources: dict[str, float], asked: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"device cuda: the cluster has no GPU \(4 CPUs\)"):
        mine.run_mine(options(tmp_path, **asked), quiet=True)
    assert not (tmp_path / "out").exists()


def test_actors_are_as_many_as_fit_or_as_the_manifest_says(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float]
) -> None:
    """Two steps of a quarter of a GPU share it evenly; without GPUs only those that are waited for
    are served."""
    import ray

    asked: dict[str, Any] = {}
    monkeypatch.setattr(desk, "start_desk", lambda name, step, most: asked.update({name: most}))
    monkeypatch.setattr(desk.Desks, "_wait", lambda self, steps: None)
    plain = {"matte": Step(), "inpaint": Step()}
    for gpus, steps, want in (
        (1.0, plain, {"matte": (1, 2), "inpaint": (1, 2)}),
        (4.0, {"encode": Step(gpus=1)}, {"encode": (1, 4)}),
        (0.0, plain, {}),
        (0.0, plain | {"caption": Step(concurrency=(1, 8))}, {"caption": (1, 8)}),
        (0.0, {"matte": Step(gpus=0)}, {"matte": (1, 1)}),
    ):
        asked.clear()
        monkeypatch.setattr(ray, "cluster_resources", lambda said=gpus: {"CPU": 4.0, "GPU": said})
        opened = desk.Desks(steps, quiet=True).open()
        assert asked == want and set(opened) == set(want)


def test_only_steps_with_a_network_are_served(tmp_path: Path) -> None:
    said = {"matte": {"gpus": 0, "batch": 4}}
    asked = options(tmp_path, matting="onnx", weights="w.onnx", steps=said)
    assert mine.served_steps(asked) == {"matte": Step(gpus=0, batch=4)}
    assert "steps" not in asked.model_dump()  # no part of the recipe
    cuda = {"device": "cuda", "captions": {"model": "vlm", "device": "cuda"}}
    whole = options(tmp_path, inpaint="lama", inpaint_weights="l.pt", matting="auto", **cuda)
    assert mine.served_steps(whole) == dict.fromkeys(("matte", "inpaint", "caption"), Step())
    url = options(tmp_path, captions={"url": "http://localhost/v1", "model": "m"}, matting="motion")
    assert mine.served_steps(url) == {}
    with pytest.raises(ValueError, match="steps: matte has no network in this job"):
        mine.served_steps(options(tmp_path, matting="chroma", steps=said))


def test_weights_are_tried_on_the_cpu_of_a_head_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: dict[str, float]
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(mine, "matting_backend", lambda name, weights, device: tried.append(device))
    monkeypatch.setattr(mine, "run_job", lambda *units, **how: how["serve"])
    resources["GPU"] = 2.0
    said = options(tmp_path, device="cuda", matting="onnx", weights="made.onnx")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    served = {"matte": Step(gpus=0.25)}
    assert mine.run_mine(said, quiet=True) == served
    monkeypatch.delenv("RAY_ADDRESS")
    assert mine.run_mine(said, quiet=True) == served
    assert mine.run_mine(options(tmp_path), quiet=True) == {}
    assert tried == ["cpu", "cuda", "cpu"]


def test_rembg_does_not_fall_back_to_the_cpu(tmp_path: Path) -> None:
    weights = make_onnx(tmp_path / "made.onnx")
    with pytest.raises(ValueError, match="onnxruntime cannot use the GPU here"):
        make_backend("rembg", weights=weights, device="cuda")
    assert onnx_session.require_device(None, "cpu") is None


def test_a_task_that_holds_a_gpu_which_torch_does_not_see_stops_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would keep the GPU from others and encode on the CPU."""
    import ray
    import torch

    assert not torch.cuda.is_available()
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    held: list[int] = []
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: held)
    assert cluster.torch_device() == "cpu"
    held.append(3)
    with pytest.raises(InfrastructureError, match=r"gave this task GPU 3, but torch .* sees none"):
        cluster.torch_device()
