"""Jobs that ask for a GPU, on clusters with and without: nothing of it is passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manifests.mine import MineOptions
from pipelines.engine import cluster, workers
from pipelines.engine.jobs import Unit
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


def test_tasks_take_the_share_of_a_gpu_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float]
) -> None:
    import ray

    class Source:
        def map(self, run: Any, **how: Any) -> Any:
            asked.append(how.get("num_gpus"))
            return self

        def iter_rows(self) -> Any:
            return iter(())

    asked: list[Any] = []
    units = [Unit("a", 0, {})]
    monkeypatch.setattr(ray.data, "from_items", lambda *items, **how: Source())
    resources["GPU"] = 1.0
    for gpus in (0.25, 0.0):
        assert list(workers.ray_rows(units, dict, workers.Pool(2, gpus=gpus))) == []
    assert asked == [0.25, None]


def test_weights_are_tried_on_the_cpu_of_a_head_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: dict[str, float]
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(mine, "matting_backend", lambda name, weights, device: tried.append(device))
    monkeypatch.setattr(mine, "run_job", lambda *units, **how: how["gpus"])
    resources["GPU"] = 2.0
    said = options(tmp_path, device="cuda")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert mine.run_mine(said, quiet=True) == mine.GPU_SHARE
    monkeypatch.delenv("RAY_ADDRESS")
    assert mine.run_mine(said, quiet=True) == mine.GPU_SHARE
    assert mine.run_mine(options(tmp_path), quiet=True) == 0.0
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
