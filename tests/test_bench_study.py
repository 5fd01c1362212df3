"""The study: each arm differs in what it says and in nothing else; its media are as described."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from bench.study import clips, measure, run, sources
from bench.study.arms import ARMS, GROUPS, manifest
from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND
from layerflow.layer_set import layer_set
from layerflow.media.cells import encode_png
from layerflow.media.known import known_of
from layerflow.media.layer_stack import LayerStack

STUDY: dict[str, Any] = yaml.safe_load(run.STUDY.read_text())


def furry(size: int = 200) -> np.ndarray:
    """A disk with hairs, RGBA uint8."""
    alpha = np.zeros((size, size), np.uint8)
    cv2.circle(alpha, (size // 2, size // 2), size // 4, 255, -1, cv2.LINE_AA)
    for angle in np.linspace(0, 2 * np.pi, 60, endpoint=False):
        reach = 0.45 * size * np.array([np.cos(angle), np.sin(angle)]) + size / 2
        end = (int(reach[0]), int(reach[1]))
        cv2.line(alpha, (size // 2, size // 2), end, 255, 1, cv2.LINE_AA)
    return np.dstack([np.full((size, size, 3), (200, 90, 40), np.uint8), alpha])


def test_a_coarse_matte_has_two_values_and_no_hair(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(encode_png(furry()))
    folder = sources.gather(tmp_path, "video", ["cat.png"], tmp_path / "media", recoloured=2)
    assert len(list(folder.iterdir())) == 3
    (first, *_) = sorted(sources.coarse(folder).iterdir())
    fine, coarse = (sources.read_cutout(p) for p in (folder / first.name, first))
    assert fine is not None and coarse is not None
    assert set(np.unique(coarse[..., 3])) <= {0, 255}
    assert len(coarse) < 0.7 * len(fine), "the hairs reach as far as before"
    with pytest.raises(ValueError, match=r"dog\.png is not there"):
        sources.gather(tmp_path, "video", ["dog.png"], tmp_path / "media")


def test_recoloured_cutouts_keep_their_matte_and_differ_in_colour(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(encode_png(furry()))
    folder = sources.gather(tmp_path, "video", ["cat.png"], tmp_path / "media", recoloured=3)
    shown = [sources.read_cutout(path) for path in sorted(folder.iterdir())]
    assert all(np.array_equal(one[..., 3], shown[0][..., 3]) for one in shown if one is not None)
    colours = {tuple(one[80, 80, :3]) for one in shown if one is not None}
    assert len(colours) == 4


def test_an_invented_background_differs_only_where_it_is_said_to_be_unknown() -> None:
    rng = np.random.default_rng(0)
    alpha = np.zeros((2, 16, 16), np.uint8)
    alpha[:, 5:10, 6:11] = 255
    pictures = {
        name: rng.integers(0, 255, (2, 16, 16, 3), np.uint8)
        for name in (FOREGROUND, BACKGROUND, BLENDED)
    }
    stack = LayerStack(layer_set("rgba"), {**pictures, ALPHA: alpha})
    made, known = clips.invented(stack)
    changed = (made.frames[BACKGROUND] != pictures[BACKGROUND]).any(-1)
    unknown = ~known_of(BACKGROUND, known)
    assert changed.any() and not (changed & ~unknown).any()
    assert unknown[alpha > 0].all() and not unknown[:, 0].any()
    assert known_of(FOREGROUND, known).all()
    assert all(np.array_equal(made.frames[n], stack.frames[n]) for n in (FOREGROUND, BLENDED))


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_manifest_that_differs_from_its_twin_only_in_what_it_says(arm: str) -> None:
    said = manifest(arm, Path("out"), 1, STUDY)
    one = ARMS[arm]
    twins = {"small": "small", "base": "base", "motion": "motion", "content": "method"}
    twin = manifest(twins[one.trains[-1]], Path("out"), 1, STUDY)
    differs = {k for k, v in said.model_dump().items() if v != twin.model_dump()[k]}
    assert differs <= {"model", "out", "stages"}
    begun = manifest("small", Path("out"), 1, STUDY).stages if one.after is None else []
    known = {stage.name: stage for stage in [*begun, *twin.stages]}
    assert [stage.name for stage in said.stages] == list(one.trains)
    for stage in said.stages:
        assert stage.steps == known[stage.name].steps * one.times // (4 if one.task else 1)
    names = {name for group in GROUPS.values() for name in group}
    assert arm in names, "nothing is compared with it"


def test_the_error_at_an_edge_counts_only_pixels_at_soft_edges() -> None:
    truth = np.zeros((1, 12, 12), np.uint8)
    truth[:, :, 6:] = 255
    truth[:, :, 5] = 128
    far, near = truth.copy(), truth.copy()
    far[:, :, 0] = 255
    near[:, :, 5] = 255
    assert measure.edge_mad(far, truth) == 0
    assert measure.edge_mad(near, truth) == pytest.approx(1000 * 127 / 255 / 3)


def test_processes_share_the_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads here: a lock is of an open file."""
    begun: list[tuple[int, str]] = []

    def measured(out: Path, arm: str, seed: int, study: Any, results: Any) -> None:
        if not results.has(arm, seed):
            begun.append((seed, arm))
            time.sleep(0.02)
            results.put(arm, {}, seed)

    monkeypatch.setattr(run.clips, "prepare", lambda *_: None)
    monkeypatch.setattr(run, "baselines", lambda *_: {})
    monkeypatch.setattr(run, "measure_arm", measured)
    monkeypatch.setattr(run, "PAUSE_SECONDS", 0.01)
    arms = ["small", "base", "longer", "motion"]
    asked = {"study": run.STUDY, "shorten": 1, "results": None, "out": tmp_path, "media": tmp_path}
    options = argparse.Namespace(**asked, seeds=[0, 1], arms=arms)
    with ThreadPoolExecutor(3) as threads:
        done = [each.result() for each in [threads.submit(run.work, options) for _ in range(3)]]
    assert sorted(begun) == sorted((seed, arm) for seed in (0, 1) for arm in arms)
    assert all(results.has(arm, seed) for results in done for seed in (0, 1) for arm in arms)


def test_who_does_not_wait_is_told_that_somebody_else_has_it(tmp_path: Path) -> None:
    lock = tmp_path / "seed-0" / "base.lock"
    with run.alone(lock) as first, run.alone(lock, wait=False) as second:
        assert first and not second
    with run.alone(lock, wait=False) as third:
        assert third
