"""The cluster recipes in docs/cluster: they parse, agree with the code, and the entrypoint runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import ray
import yaml
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.corpus.store import in_object_store
from layerflow.corpus.table import Corpus
from manifests.common import load
from manifests.schema import BuildManifest
from tests.support import ROOT
from tests.support.mined import green_screen

FOLDER = ROOT / "docs" / "cluster"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def test_the_rayjob_builds_its_own_manifest(tmp_path: Path) -> None:
    config, job = documents("rayjob.yaml")
    (tmp_path / "in").mkdir()
    green_screen(tmp_path / "in" / "a.mp4", 0)
    text = config["data"]["corpus.yaml"]
    (tmp_path / "as-is.yaml").write_text(text)
    assert load(tmp_path / "as-is.yaml", BuildManifest).jobs[0].job == "mine"
    for old, new in (
        ("/data/videos", str(tmp_path / "in")), ("/data/mined", str(tmp_path / "out")),
        ("480x720", "96x128"), ("frames: 16", "frames: 8"), ("matting: motion", "matting: chroma"),
        ("gate: standard", "gate: 'off'"),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "corpus.yaml").write_text(text)
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[0] == "layerflow" and words[2] == "/manifest/corpus.yaml"
    words[2] = str(tmp_path / "corpus.yaml")
    result = CliRunner().invoke(build_app(), [*words[1:], "--workers", "0"])
    assert result.exit_code == 0, result.output
    assert len(Corpus.open(tmp_path / "out")) == 2


def test_mounts_images_and_versions_agree() -> None:
    job = documents("rayjob.yaml")[1]["spec"]["rayClusterSpec"]
    assert job["rayVersion"] == ray.__version__
    pods = [job["headGroupSpec"], *job["workerGroupSpecs"]]
    images = set()
    for pod in pods:
        spec = pod["template"]["spec"]
        (container,) = spec["containers"]
        images.add(container["image"])
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]} and "data" in mounted
    (cluster,) = documents("ray-cluster.yaml")
    assert images == {cluster["docker"]["image"]}
    assert len(cluster["provider"]["worker_ips"]) == cluster["max_workers"]
    assert "--address=$RAY_HEAD_IP:6379" in cluster["worker_start_ray_commands"][-1]


def test_the_training_shares_no_volume_and_asks_for_what_there_is() -> None:
    (job,) = documents("rayjob-train.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [each["template"]["spec"] for each in groups]
    for spec in pods:
        (container,) = spec["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        assert not any("persistentVolumeClaim" in volume for volume in spec["volumes"])
        assert container["envFrom"] == [{"secretRef": {"name": "layerflow-bucket"}}]
    (group,) = cluster["workerGroupSpecs"]
    gpus = int(pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["layerflow", "train", "/manifest/train.yaml"]
    assert int(words[words.index("--workers") + 1]) == gpus * group["replicas"]
    assert in_object_store(words[words.index("--out") + 1])
    result = CliRunner().invoke(build_app(), [*words[1:2], *words[3:], "/nowhere/train.yaml"])
    assert "/nowhere/train.yaml: no such manifest" in str(result.exception), "options are known"
    assert ",s3]" in (FOLDER / "Dockerfile").read_text()


def test_the_image_copies_what_is_there_and_pins_what_we_pin() -> None:
    recipe = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    copied = [w for line in re.findall(r"^COPY (.+) \S+$", recipe, re.M) for w in line.split()]
    assert {"layerflow", "pipelines", "trainer", "manifests", "pyproject.toml"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied if "*" not in name)
    pinned = re.search(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert pinned and f"torch=={pinned[1]}" in recipe
