"""Evaluation of models and of files; the scores that rest on CLIP."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.clip import LayeredClip, composite
from layerflow.corpus.table import SCHEMA, encode_row, origin
from layerflow.corpus.writer import write_table
from layerflow.evaluation import clip_scores, metrics
from layerflow.evaluation.clip_scores import ClipScorer
from layerflow.evaluation.run import score_clip, summarise
from layerflow.evaluation.tables import tables
from layerflow.model.layers import given_layers
from layerflow.model.presets import init_directory
from layerflow.model.sample import write_layers


def clip(seed: int = 0, frames: int = 4, side: int = 32) -> LayeredClip:
    """A square that moves 2 pixels a frame over a background of noise."""
    rng = np.random.default_rng(seed)
    background = rng.integers(60, 200, (1, side, side, 3)).repeat(frames, 0).astype(np.uint8)
    foreground = np.full((frames, side, side, 3), (220, 40, 30), np.uint8)
    alpha = np.zeros((frames, side, side), np.uint8)
    for t in range(frames):
        alpha[t, 8:20, 4 + 2 * t : 16 + 2 * t] = 255
    blended = composite(foreground, alpha, background)
    prompts = {"foreground": "a red box", "background": "noise", "blended": "a box in noise"}
    return LayeredClip(foreground, alpha, background, blended, prompts)


def write_corpus(folder: Path, clips: list[LayeredClip]) -> list[str]:
    ids = [f"{index:016d}" for index in range(len(clips))]
    rows = [
        encode_row(c, id=i, origin=origin(i, "b"), quality={}, recipe="r")
        for i, c in zip(ids, clips, strict=True)
    ]
    write_table(folder, rows, SCHEMA)
    return ids


def command(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(), ["evaluate", *map(str, arguments)])


# ---- scores -----------------------------------------------------------------------------------


def test_a_perfect_decomposition() -> None:
    truth = clip()
    scores = score_clip(truth, truth, ("blended",))
    assert scores["mad"] == scores["recomposition"] == 0 and scores["iou"] == 1
    assert scores["psnr_hole"] == float("inf") and scores["ssim_hole"] == pytest.approx(1)
    assert scores["given_psnr_blended"] == float("inf")
    assert scores["drift"] == pytest.approx(2)
    assert "text_foreground" not in scores


def test_scores_say_what_is_wrong() -> None:
    truth = clip()
    shifted = clip()
    shifted.background[:] = truth.background - 10
    shifted.alpha[:] = np.roll(truth.alpha, 12, axis=2)
    scores = score_clip(shifted, truth, ("blended",))
    assert scores["psnr_hole"] == pytest.approx(20 * np.log10(25.5))
    assert scores["iou"] == metrics.alpha_iou(shifted.alpha, truth.alpha) < 0.1
    assert scores["recomposition"] > 10
    generated = score_clip(shifted, truth, ())
    assert not {"mad", "iou", "psnr_hole"} & set(generated) and "recomposition" in generated
    given_back = score_clip(shifted, truth, ("background",))
    assert given_back["given_psnr_background"] == pytest.approx(20 * np.log10(25.5))


def test_consistency_text_and_aesthetics_by_hand() -> None:
    frames = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]], np.float32)
    half = np.sqrt(0.5)
    assert clip_scores.frame_consistency(frames) == pytest.approx((0 + half) / 2)
    assert np.isnan(clip_scores.frame_consistency(frames[:1]))
    assert clip_scores.text_alignment(frames, np.array([0.0, 5.0], np.float32)) == pytest.approx(
        (0 + 1 + half) / 3
    )
    weight = np.array([10.0, 0.0], np.float32)
    score = clip_scores.aesthetic_score(frames, weight, 2.0)
    assert score == pytest.approx((10 + 0 + 10 * half + 6) / 3 / 10)


def test_given_layers() -> None:
    assert given_layers("fg2bg") == ("foreground", "alpha") and given_layers("generate") == ()
    assert given_layers("foreground+blended") == ("foreground", "blended")
    for wrong in ("nope", "foreground+alpha+background+blended"):
        with pytest.raises(ValueError, match="unknown task"):
            given_layers(wrong)


def test_tables_leave_out_what_nobody_measured() -> None:
    rows = [
        {"task": "decompose", "id": "a", "mad": 2.0, "psnr_hole": 20.0},
        {"task": "decompose", "id": "b", "mad": 4.0, "psnr_hole": float("inf")},
        {"task": "generate", "id": "a", "dynamic_foreground": 1.0},
    ]
    summary = summarise(rows)
    assert summary["decompose"]["mad"] == {"mean": 3.0, "std": 1.0, "clips": 2}
    assert summary["decompose"]["psnr_hole"]["clips"] == 1
    text = tables(summary)
    assert "| decompose | 2 | 3.00 |" in text and "| generate | 1 | 1.00 |" in text
    assert "Cons" not in text and "IoU" not in text


# ---- the command ------------------------------------------------------------------------------


def test_a_model_is_evaluated_the_same_in_any_batch(tmp_path: Path) -> None:
    model = init_directory(tmp_path / "model", "tiny", num_layers=1, num_attention_heads=1)
    torch.manual_seed(0)
    long = clip(2, frames=7)
    ids = write_corpus(tmp_path / "corpus", [clip(0), clip(1, frames=2), long])
    where = ["--model", model, "--corpus", tmp_path / "corpus", "--steps", 2]
    tasks = ["--task", "decompose", "--task", "generate"]
    for batch in (1, 3):
        done = command(*where, *tasks, "--batch", batch, "--out", tmp_path / f"out{batch}")
        assert done.exit_code == 0, done.exception
    assert "| decompose | 2 |" in done.output and "1 clips skipped" in done.output
    rows, again = (list(csv.DictReader((tmp_path / f"out{b}/clips.csv").open())) for b in (1, 3))
    assert [row["id"] for row in rows] == [ids[0], ids[2]] * 2
    for one, other in zip(rows, again, strict=True):
        assert float(one["recomposition"]) == pytest.approx(float(other["recomposition"]), abs=0.1)
    summary = json.loads((tmp_path / "out3/metrics.json").read_text())
    assert summary["skipped"] == {ids[1]: "fewer than 4 frames"}
    assert summary["tasks"]["generate"].keys() & {"mad", "iou"} == set()
    assert (tmp_path / "out3/contact-decompose.png").is_file()


def test_predictions_are_read_as_sample_writes_them_and_from_a_corpus(tmp_path: Path) -> None:
    clips = [clip(0), clip(1)]
    ids = write_corpus(tmp_path / "corpus", clips)
    rgba = np.concatenate([clips[0].foreground, clips[0].alpha[..., None]], -1)
    layers = {
        "foreground": rgba,
        "alpha": clips[0].alpha,
        "background": clips[0].background,
        "blended": clips[0].blended,
    }
    write_layers(tmp_path / "made" / ids[0], layers, {}, 8.0, {})
    where = ["--corpus", tmp_path / "corpus", "--out", tmp_path / "out"]
    done = command("--predictions", tmp_path / "made", *where)
    assert done.exit_code == 0, done.exception
    summary = json.loads((tmp_path / "out/metrics.json").read_text())
    assert summary["skipped"] == {ids[1]: "no prediction"}
    assert summary["tasks"]["decompose"]["iou"]["mean"] == 1.0
    done = command("--predictions", tmp_path / "corpus", *where)
    assert done.exit_code == 0 and "| decompose | 2 | 0.00 |" in done.output
    wrong = command("--predictions", tmp_path / "nowhere", *where)
    assert "neither a corpus nor a folder" in str(wrong.exception)
    both = command("--predictions", tmp_path, "--model", tmp_path, *where)
    assert "either --model or --predictions" in str(both.exception)


def test_a_clip_model_from_a_local_folder(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = make_clip_model(tmp_path / "clip")
    save_file({"weight": torch.ones(1, 8), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    scorer = ClipScorer(folder, tmp_path / "head.safetensors")
    truth = clip()
    scores = score_clip(truth, truth, (), scorer)
    assert {f"{n}_{p}" for n in ("text", "consistency", "aesthetic") for p in truth.prompts} <= (
        scores.keys()
    )
    assert scores["consistency_background"] == pytest.approx(1, abs=1e-5)  # it does not move
    assert -1 <= scores["text_blended"] <= 1
    with pytest.raises(ValueError, match=r"needs weight \[1, 8\]"):
        save_file({"weight": torch.ones(1, 9)}, tmp_path / "wrong.safetensors")
        ClipScorer(folder, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match="no CLIP model folder"):
        ClipScorer(tmp_path)


def make_clip_model(folder: Path) -> Path:
    """A random CLIP of a few thousand parameters, with a byte-level tokenizer without merges."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder.mkdir()
    signs = [chr(c) for c in range(33, 127)]
    words = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    ends = {"eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**sizes, **heads, **ends, "vocab_size": len(words)},
        vision_config={**sizes, **heads, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder
