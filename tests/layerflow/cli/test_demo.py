"""The demo: its manifests, what it measures, its page; and, slowly, the whole way in small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import manifests
from layerflow.cli.demo import measure as demo_measure
from layerflow.cli.demo import memory as demo_memory
from layerflow.cli.demo import page as demo_page
from layerflow.cli.demo import steps as demo_steps
from layerflow.clip import LayeredClip
from layerflow.evaluation import baselines
from layerflow.model.layers import TASKS
from manifests.demo import DemoManifest, load
from tests.support.small_demo import write_small_demo

FOLDER = Path(manifests.__file__).parent


def make_demo(out: Path, beside: Path = FOLDER, **changes: Any) -> demo_steps.Demo:
    content = yaml.safe_load((FOLDER / "demo.yaml").read_text()) | changes
    return demo_steps.Demo(DemoManifest.model_validate(content), beside, out)


def test_shipped_manifests_pass_the_check_that_runs_before_any_work(tmp_path: Path) -> None:
    demo = make_demo(tmp_path / "demo")
    demo.check()
    assert demo.train.out == str(tmp_path / "demo" / "train")
    assert demo.train.latents["video"] == str(tmp_path / "demo" / "latents" / "video")
    assert demo.train.keep_exports
    assert {stage.name for stage in demo.train.stages} >= set(demo_measure.STAGES)
    assert not (tmp_path / "demo").exists()


def test_held_out_clips_share_no_source_and_no_seed(tmp_path: Path) -> None:
    demo = make_demo(tmp_path)
    training = demo.paste("pasted", 10, 0, demo.media("foregrounds"))
    held_out = demo.paste("held-out", 10, 1000, demo.media("foregrounds-held-out"))
    assert not set(training.foregrounds) & set(held_out.foregrounds)
    assert not set(training.backgrounds) & set(held_out.backgrounds)
    assert training.seed != held_out.seed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mine": {"size": "160x240", "matting": "motion", "frame": 16}}, "mine: frame: unknown"),
        ({"paste": {"size": "40x40", "speed": [2, 1]}}, "paste: speed: a range is"),
        ({"train": "absent.yaml"}, "absent.yaml: no such manifest"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_demo(tmp_path, **changes).check()


def test_an_unknown_key_of_the_demo_manifest_is_named(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text((FOLDER / "demo.yaml").read_text() + "\nspeeed: 1\n")
    with pytest.raises(ValueError, match="speeed: unknown key"):
        load(path)


def test_the_longer_demo_changes_single_keys_and_multiplies_steps(tmp_path: Path) -> None:
    short, full = (load(FOLDER / "demo.yaml", full=full) for full in (False, True))
    assert full.media.videos.count > short.media.videos.count
    assert full.media.videos.families == short.media.videos.families
    assert full.counts.training > short.counts.training
    assert full.counts.held_out == short.counts.held_out
    written = yaml.safe_load((FOLDER / "demo-train.yaml").read_text())["stages"]
    for said in (short, full):
        demo = demo_steps.Demo(said, FOLDER, tmp_path / "out")
        steps = [stage.steps for stage in demo.train.stages]
        assert steps == [round(stage["steps"] * said.train_steps) for stage in written]
    assert sum(steps) > sum(stage["steps"] for stage in written)


def some_result(iou: float) -> dict[str, Any]:
    names = ("empty matte", "mean training matte", baselines.MOTION, *baselines.COLOUR)
    model = {"iou": iou, "mad": 20.0, "background_psnr": 22.0}
    row = {"drift": 1.0, "red_minus_blue": 0.5, "area": 0.2}
    return {
        "jobs": {"mined": {"kept": 2, "rejected": 1, "reasons": {"gate: <b> & N": 1}}},
        "mattes": [{"video": "a.mp4", "iou": 0.9}, {"video": "b.mp4", "iou": 0.7}],
        "losses": {
            "base": {
                "steps": 4, "first": 1.0, "last": 0.25, "seconds_per_step": 0.1,
                "curve": [1.0, 0.5, 0.25],
            }
        },
        "decomposition": {
            "clips": 8, "models": {"base": model}, "baselines": dict.fromkeys(names, 0.5)
        },
        "decomposition_new": {
            "clips": 8, "models": {"base": model}, "baselines": dict.fromkeys(names, 0.5)
        },
        "motion": {"rows": {"base": row}, "kept": 0.8},
        "seconds": {"mine": 3.0, "all": 9.0},
        "cpu_seconds": {"mine": 5.0},
        "peak_gib": 1.5,
    }  # fmt: skip


def test_the_page_grows_and_says_what_is_not_done_yet(tmp_path: Path) -> None:
    demo, pages = make_demo(tmp_path / "demo"), []
    demo.out.mkdir()
    demo.show = lambda result: pages.append(demo_page.write_page(demo, result).read_text())
    with demo.step("draw media"):
        pass
    at_work, drawn = pages
    assert "At work: draw media" in at_work and 'http-equiv="refresh"' in at_work
    assert "<td>draw media</td><td>at work</td>" in at_work
    assert re.search(r"<td>draw media</td><td>\d+\.\d s, CPU", drawn)
    assert "<td>train</td><td>not done yet</td>" in drawn and "at work" not in drawn
    demo.show(some_result(0.6) | {"jobs": {}})
    assert "refresh" not in pages[-1] and "At work" not in pages[-1]
    assert "<td>mine</td><td>3.0 s, CPU 5.0 s</td>" in pages[-1]


def rows_of(result: dict[str, Any]) -> dict[str, str]:
    return {name: value for _, rows in demo_page.figures(result) for name, value in rows}


def test_figures_say_whether_the_baselines_are_beaten() -> None:
    assert rows_of(some_result(0.6))["the last above all baselines"] == "yes"
    assert rows_of(some_result(0.4))["the last above all baselines"] == "NO"
    learnt_late = some_result(0.4)
    learnt_late["decomposition"]["models"]["content"] = {
        "iou": 0.6,
        "mad": 50.0,
        "background_psnr": 20.0,
    }
    learnt_late["decomposition_new"] = learnt_late["decomposition"]
    assert rows_of(learnt_late)["the last above all baselines"] == "yes"
    untrained = some_result(0.6)
    untrained["decomposition"]["models"] = {}
    del untrained["decomposition_new"]
    assert rows_of(untrained)["the last above all baselines"] == "NO"


def test_figures_hold_what_was_measured() -> None:
    rows = rows_of(some_result(0.6))
    assert rows["matte IoU with truth"] == "mean 0.800, least 0.700, of 2 mined clips"
    assert rows["base"].startswith("drift 1.00 px/frame")
    assert rows["motion kept after the content stage (gate 0)"] == "80%"
    assert rows["mine"] == "3.0 s, CPU 5.0 s"


def test_curves_lie_inside_the_picture_and_text_is_escaped() -> None:
    svg = demo_page.curves({"a<b": [2.0, 1.0, 0.0], "second": [1.0, 1.0]})
    assert svg.count("<polyline") == 2 and "a&lt;b" in svg
    points = svg.split('points="')[1].split('"')[0].split()
    xs, ys = np.array([p.split(",") for p in points], float).T
    assert ys[0] < ys[-1] and ys.min() >= 0 and ys.max() <= demo_page.HEIGHT
    assert xs.max() <= demo_page.WIDTH
    assert "<script>" not in demo_page.table([("<script>", "x")])


def test_smoothed_curve_keeps_the_ends() -> None:
    values = list(np.linspace(1, 0, 1000))
    curve = demo_measure.smoothed(values, 10)
    assert len(curve) == 200
    assert curve[0] == pytest.approx(np.mean(values[:10]), abs=1e-4)
    assert curve[-1] == pytest.approx(np.mean(values[-10:]), abs=1e-4)


def test_figures_of_generated_foregrounds() -> None:
    foreground = np.zeros((3, 8, 8, 3), np.uint8)
    foreground[..., 0] = 255
    alpha = np.zeros((3, 8, 8), np.uint8)
    for t in range(3):
        alpha[t, 2:4, t : t + 2] = 255
    clip = LayeredClip(foreground, alpha, foreground, foreground)
    seen = demo_measure.foreground_figures([clip])
    assert seen == {"drift": 1.0, "red_minus_blue": 1.0, "area": 4 / 64}


def test_cpu_time_of_children_counts_also_after_they_ended() -> None:
    busy = "import time\nwhile time.process_time() < 0.6: pass\nprint('ready', flush=True)\n"
    tree = demo_memory.Tree()
    before = tree.cpu
    with subprocess.Popen([sys.executable, "-c", busy + "time.sleep(30)"], stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert tree.cpu - before >= 0.5
        child.kill()
    assert tree.cpu - before >= 0.5, "it has ended"


def test_memory_of_children_counts() -> None:
    code = "import time; held = bytearray(200 << 20); print('ready', flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            alone = demo_memory.Tree(child.pid).sample()
            assert alone > 200 << 20
            assert demo_memory.Tree().sample() > alone
        finally:
            child.kill()


@pytest.mark.slow
def test_the_whole_demo_in_small(tmp_path: Path) -> None:
    write_small_demo(FOLDER, tmp_path)
    demo = demo_steps.Demo(
        load(tmp_path / "demo.yaml"),
        tmp_path,
        tmp_path / "out",
        workers=0,
        quiet=True,
    )
    demo.show = lambda result: demo_page.write_page(demo, result)
    result = demo_steps.run_demo(demo)
    assert result["jobs"]["mined"]["kept"] == 1 and result["jobs"]["mined"]["rejected"] == 1
    assert result["mattes"][0]["iou"] > 0.8
    for key in ("decomposition", "decomposition_new"):
        assert set(result[key]["models"]) == set(demo_measure.STAGES)
    assert set(result["motion"]["rows"]) >= {"base", "motion LoRA, gate 1", "content LoRA, gate 0"}
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["peak_gib"] > 0.2
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 4 + 8 + 6 and "http" not in page.split("<body>")[1]
    for task in TASKS:
        assert (tmp_path / "out" / "samples" / task / task / "alpha.mkv").is_file()
    again = demo_steps.run_demo(replace(demo, result={"seconds": {}, "cpu_seconds": {}}))
    assert again["decomposition"] == result["decomposition"]
