"""Launching: in this process, through Ray Train, and planned without training."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.clip import LayeredClip
from layerflow.corpus.table import SCHEMA, encode_row, origin
from layerflow.corpus.writer import write_table
from layerflow.model.adapters import adapter_names
from layerflow.model.cogvideox.pipeline import LayerFlowPipeline
from layerflow.model.presets import init_directory
from manifests.train import TrainManifest, Validation
from pipelines.encode.clip_latents import Augment
from pipelines.encode.job import run_encode
from tests.support.trainer_kit import make_manifest, make_model, weights
from tests.support.training_runs import losses
from trainer.data import Shape
from trainer.distributed import board
from trainer.distributed.board import Notes, following
from trainer.distributed.launch import launch, train_on_ray
from trainer.distributed.placement import Placement
from trainer.planning.plan import duration, lines, make_plan


def write(manifest: TrainManifest, path: Path) -> str:
    path.write_text(yaml.safe_dump(manifest.model_dump(mode="json")))
    return str(path)


def command(*arguments: str) -> Any:
    return CliRunner().invoke(build_app(), list(arguments))


def test_the_command_trains_resumes_and_exports(tmp_path: Path) -> None:
    manifest = write(make_manifest(tmp_path, tensorboard=True), tmp_path / "m.yaml")
    out = tmp_path / "elsewhere"
    first = command("train", manifest, "--out", str(out), "--stage", "base")
    assert first.exit_code == 0, first.output
    assert "base 5/5" in first.output and len(losses(out)) == 5
    rest = command("train", manifest, "--out", str(out))
    assert rest.exit_code == 0 and "base: done before" in rest.output
    assert len(losses(out)) == 13 and len(weights(out / "export")) > 20
    assert list((out / "tensorboard").glob("events*"))
    quiet = command("train", manifest, "--out", str(out), "--fresh", "--quiet", "--stage", "base")
    assert "base 5/5" not in quiet.output and len(losses(out)) == 5


def test_wrong_requests_are_refused_before_any_work(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    path = write(manifest, tmp_path / "m.yaml")
    result = command("train", path, "--workers", "3")
    assert isinstance(result.exception, ValueError)
    assert "batch of 4 does not divide among 3 workers" in str(result.exception)
    nope = manifest.model_copy(update={"model": str(tmp_path / "nope")})
    with pytest.raises(ValueError, match="no model directory"):
        launch(nope)
    gone = manifest.model_copy(update={"latents": {"video": str(tmp_path), "stills": "x"}})
    with pytest.raises(ValueError, match="holds no latents"):
        launch(gone)
    stage = manifest.stages[0].model_copy(
        update={"mixture": [manifest.stages[0].mixture[0].model_copy(update={"kinds": ["image"]})]}
    )
    with pytest.raises(ValueError, match=r"video: none of its 10 rows is of kinds \['image'\]"):
        launch(manifest.model_copy(update={"stages": [stage]}), log=lambda line: None)


def test_latents_of_another_model_are_refused(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    make_model(tmp_path / "wide", channels=6)
    wide = manifest.model_copy(update={"model": str(tmp_path / "wide")})
    with pytest.raises(ValueError, match="latents of 4x2x2; the model takes 6 channels"):
        launch(wide)
    path = tmp_path / "video/fingerprint.json"
    path.write_text(path.read_text().replace("{", '{"vae": "other",', 1))
    with pytest.raises(ValueError, match=r"with another model.*\s+vae: 'other' there"):
        launch(manifest)
    assert not (tmp_path / "out").exists()


def test_the_export_is_a_pipeline_with_both_adapters(tmp_path: Path) -> None:
    """Corpus -> latents -> three stages -> a pipeline that samples, gate 0."""
    model = init_directory(tmp_path / "model", "tiny", num_layers=1, num_attention_heads=1)
    alpha = np.zeros((4, 32, 32), np.uint8)
    alpha[:, 8:24, 8:24] = 255
    colours = np.full((4, 32, 32, 3), 90, np.uint8)
    clip = LayeredClip(colours, alpha, colours, colours, {"foreground": "a box"})
    row = encode_row(clip, id="0" * 16, origin=origin("a", "b" * 64), quality={}, recipe="r")
    write_table(tmp_path / "corpus", [row], SCHEMA)
    where = {"model": model, "size": (32, 32), "workers": 0, "quiet": True}
    run_encode([tmp_path / "corpus"], out=tmp_path / "video", **where)
    run_encode([tmp_path / "corpus"], out=tmp_path / "stills", augment=Augment(freeze=1), **where)
    latents = {"video": str(tmp_path / "video"), "stills": str(tmp_path / "stills")}
    kit = make_manifest(tmp_path / "kit")
    stages = [stage.model_copy(update={"steps": 2}) for stage in kit.stages]
    trains = stages[2].trains.model_copy(update={"blocks": "all"})  # type: ignore[union-attr]
    stages[2] = stages[2].model_copy(update={"trains": trains})
    changes = {"model": str(model), "latents": latents, "stages": stages}
    manifest = kit.model_copy(update=changes | {"out": str(tmp_path / "out")})
    assert launch(manifest, log=lambda line: None)
    pipe = LayerFlowPipeline.from_pretrained(tmp_path / "out/export")
    assert sorted(adapter_names(pipe.transformer)) == ["content", "motion"]
    start = LayerFlowPipeline.from_pretrained(model)
    how = {"height": 32, "width": 32, "num_frames": 4, "num_inference_steps": 2}
    pictures = [
        each(
            prompt={"foreground": "a box"},
            generator=torch.Generator().manual_seed(0),
            guidance_scale=1.0,
            output_type="np",
            **how,
        ).blended
        for each in (pipe, start)
    ]
    assert np.shape(pictures[0])[1:] == (4, 32, 32, 3)
    assert not np.allclose(pictures[0], pictures[1])
    run_the_card(tmp_path / "out/export")


def run_the_card(export: Path) -> None:
    """The model card's Python runs in the export as it stands, and its figures are the run's."""
    text = (export / "README.md").read_text()
    assert "| motion | LoRA `motion`, rank 2, alpha 2 | 2 | 4 | 0.005 | generate 1 |" in text
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "diffusers" and "lora" in head["tags"]
    snippet = text.split("```python\n")[1].split("```")[0]
    before = Path.cwd()
    os.chdir(export)
    try:
        exec(compile(snippet, "README.md", "exec"), {})
    finally:
        os.chdir(before)
    assert (export / "foreground.png").is_file()
    files = sorted(file.name for file in (export / "transformer/adapters/motion").iterdir())
    assert files == ["model.safetensors"]
    assert (export / "transformer/adapters/content/pytorch_lora_weights.safetensors").is_file()
    assert "do not take it" in text and "ComfyUI" not in text


def test_plan_says_what_would_train_and_trains_nothing(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    plans = make_plan(manifest)
    assert [plan.name for plan in plans] == ["base", "motion", "content"]
    base, motion, content = plans
    assert motion.trained == 2 * 4 * 2 * 2 * 32  # blocks x targets x halves x rank x width
    assert content.trained == motion.trained // 2  # one block of two
    assert base.trained > 10 * motion.trained
    assert content.rows == [6, 10] and base.buckets == {Shape(2, 2, 2): 10}
    assert base.costs.tokens == 4 * 2 * 4 + 6
    text = "\n".join(lines(manifest, plans))
    assert base.memory == base.choices["fp32 none"]
    assert base.choices["bf16 full"] < base.choices["bf16 selective"] < base.choices["bf16 none"]
    assert "GiB by choice: fp32 none" in text and "free now:" in text
    assert "latent shapes (f x h x w) 2x2x2 (10 clips)" in text
    assert "content: does not train decompose, fg2bg, which a stage before it did" in text
    assert "motion: 4 steps of 4 clips" in text and "transformer_blocks.1" in text
    result = command("train", write(manifest, tmp_path / "m.yaml"), "--plan")
    assert result.exit_code == 0 and "content: 4 steps" in result.output
    assert not (tmp_path / "out").exists()


def test_the_plan_makes_up_no_speed_and_counts_all_phases(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, precision="bf16", checkpointing="full")
    plain = make_plan(manifest)
    assert plain[0].seconds is None and plain[0].validation is None
    text = "\n".join(lines(manifest, plain))
    assert "time unknown (how fast a CPU trains; its first steps show it)" in text
    assert "% of it recomputation" in text
    none = make_plan(manifest.model_copy(update={"checkpointing": "none"}))
    assert plain[0].flops == pytest.approx(1.35 * none[0].flops, rel=0.05)
    assert plain[0].costs.total == none[0].costs.total, "MFU counts the model's FLOPs"

    held = Validation.model_validate({"latents": "video", "samples": 1})
    changes = {"validation": held, "gpus": True, "accelerator_type": "H100"}
    there = manifest.model_copy(update=changes)
    plans = make_plan(there)
    base = plans[0]
    assert base.seconds == pytest.approx(base.steps * base.flops / (0.35 * 989e12))
    assert base.validation and base.sampling
    said = lines(there, plans)
    assert any("on 1 H100" in line for line in said) and "free now: unknown" in said[-1]
    assert any("in the first worker, which waits" in line for line in said)
    for wrong, why in (
        ({"accelerator_type": "T4"}, "no peak is known of T4"),
        ({"accelerator_type": None}, "no peak is known of GPUs whose type nothing says"),
        ({"precision": "fp32"}, "known peaks of GPUs are those of bf16"),
    ):
        changed = there.model_copy(update=wrong)
        assert f"time unknown ({why})" in "\n".join(lines(changed, make_plan(changed)))
    placed = Placement(True, "A100", "2 workers train on GPUs", spare=True)
    alone = make_plan(there, placed)[0]
    assert alone.sampling and alone.sampling < base.sampling
    assert alone.seconds == pytest.approx(base.seconds * 989 / 312)


def test_durations_are_said_in_the_unit_that_fits() -> None:
    said = [duration(seconds) for seconds in (41.26, 119.0, 600.0, 9000.0, 86400.0 * 40)]
    assert said == ["41.3 s", "119.0 s", "10.0 min", "2.5 h", "40.0 days"]


def test_two_ray_workers_give_the_curve_of_one_process(tmp_path: Path) -> None:
    one = make_manifest(tmp_path, out=str(tmp_path / "one"))
    assert launch(one, log=lambda line: None)
    (tmp_path / "file").write_text("in the way")
    upload = str(tmp_path / "file/run")
    two = make_manifest(tmp_path, out=str(tmp_path / "two"), workers=2, upload=upload)
    said: list[str] = []
    assert launch(two, log=said.append)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert any(line.startswith("content 4/4") for line in said)
    assert any("upload of export to" in line and "failed" in line for line in said)
    assert sorted(path.name for path in (tmp_path / "two").glob(".*")) == []
    ours, theirs = weights(tmp_path / "one/export"), weights(tmp_path / "two/export")
    assert ours.keys() == theirs.keys()


def test_what_a_worker_says_is_logged_and_a_wish_to_stop_reaches_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(board, "ask", lambda method, *arguments: method(*arguments))
    said: list[str] = []
    notes, stop = Notes(), threading.Event()
    with following(notes, said.append, stop):
        notes.say("one")
        notes.say("zwei, schön")
        assert not notes.is_stopping()
        stop.set()
    assert said == ["one", "zwei, schön"] and notes.is_stopping() and notes.take() == []


@pytest.mark.slow
def test_a_killed_ray_worker_ends_with_the_parameters_of_an_unbroken_run(tmp_path: Path) -> None:
    stages = [make_manifest(tmp_path).stages[0].model_copy(update={"steps": 150})]
    changes = {"workers": 2, "stages": stages, "save_every": 20, "log_every": 1}
    whole = make_manifest(tmp_path, out=str(tmp_path / "whole")).model_copy(update=changes)
    broken = make_manifest(tmp_path, out=str(tmp_path / "broken")).model_copy(update=changes)
    assert train_on_ray(whole, only=None, fresh=False, log=lambda line: None)
    killed: list[int] = []

    def kill_one() -> None:
        while (
            len(losses(tmp_path / "broken") if (tmp_path / "broken/metrics.csv").is_file() else [])
            < 50
        ):
            time.sleep(0.05)
        killed.append(kill_a_worker())

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    assert train_on_ray(broken, only=None, fresh=False, log=lambda line: None)
    thread.join(5)
    assert killed and killed[0]
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "whole/export"), weights(tmp_path / "broken/export")
    assert all((ours[name] == theirs[name]).all() for name in ours)


def kill_a_worker() -> int:
    """SIGKILL one Ray Train worker among this process' descendants; its pid, or 0."""
    import psutil

    for process in psutil.Process(os.getpid()).children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return process.pid
    return 0
