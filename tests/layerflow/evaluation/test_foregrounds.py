"""Measures of several foregrounds, by hand; who is in front; baselines that split a mask."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from layerflow.clip import U8
from layerflow.corpus.row_stack import stack_of_row
from layerflow.evaluation.baselines import MOTION, several_baselines
from layerflow.evaluation.foregrounds import (
    matching,
    order_score,
    recomposition_error,
    split_mask,
)
from layerflow.evaluation.predictions import EvaluateRequest, complete
from layerflow.evaluation.run import run_evaluate, score_clip
from layerflow.layer_set import layer_set
from layerflow.media.layer_stack import LayerStack
from layerflow.media.sample_files import write_layers
from layerflow.model.layers import given_layers
from tests.support.several import several_corpus, several_row

TWO = layer_set("rgbax2")


def matte(*columns: int, width: int = 8) -> U8:
    """One frame of one row: opaque in these columns."""
    alpha = np.zeros((1, 1, width), np.uint8)
    alpha[..., list(columns)] = 255
    return alpha


def stack(back: U8, front: U8) -> LayerStack:
    """Red below blue over grey, exactly composed."""
    colour = np.zeros((*back.shape, 3), np.uint8)
    red, blue, grey = (colour + np.uint8(c) for c in ((200, 0, 0), (0, 0, 200), (90, 90, 90)))
    blended = np.where(front[..., None] > 0, blue, np.where(back[..., None] > 0, red, grey))
    frames = {"foreground": red, "alpha": back, "foreground.2": blue, "alpha.2": front}
    return LayerStack(TWO, {**frames, "background": grey, "blended": blended})


def test_each_foreground_is_compared_with_the_one_of_its_place() -> None:
    truth = stack(matte(0, 1, 2, 3), matte(2, 3, 4, 5))
    made = replace(truth, frames={**truth.frames, "alpha": matte(0, 1), "alpha.2": matte(3, 4, 5)})
    scores = score_clip(made, truth, ("blended",))
    assert scores["iou_foreground"] == 0.5 and scores["mad_foreground"] == 250.0  # 2 of 8 pixels
    assert scores["iou_foreground.2"] == 0.75 and scores["mad_foreground.2"] == 125.0
    assert scores["iou_each"] == 0.625 and scores["mad_each"] == 187.5
    assert scores["iou"] == 5 / 6  # joined, column 2 is missing
    # column 2 is red-less and blue-less now: grey (90, 90, 90) where blue (0, 0, 200) is right
    assert scores["recomposition"] == pytest.approx((90 + 90 + 110) / 3 / 8)
    assert score_clip(truth, truth, ("blended",))["recomposition"] == 0
    given = score_clip(made, truth, ("foreground", "alpha", "blended"))
    assert "iou_foreground" not in given and given["iou_each"] == 0.75
    assert not any(name.startswith("iou_") for name in score_clip(made, truth, ("background",)))


def test_the_order_is_who_is_seen_in_front_where_foregrounds_overlap() -> None:
    back, front = matte(0, 1, 2, 3), matte(2, 3, 4, 5)
    assert order_score([back, front], [back, front]) == 1
    assert order_score([front, back], [back, front]) == 0  # right mattes, the wrong way round
    assert order_score([back, matte(3, 4, 5)], [back, front]) == 0.5
    assert order_score([matte(0, 1), matte(4, 5)], [back, front]) == 0  # nothing is there
    assert math.isnan(order_score([back, front], [matte(0, 1), matte(4, 5)]))
    # What is cut by the one before it is in its right place, whatever its number.
    assert order_score([front, matte(0, 1)], [back, front]) == 1


def test_mattes_are_matched_by_the_greatest_sum_of_overlaps() -> None:
    a, b, c = matte(0, 1, 2), matte(2, 3, 4), matte(6, 7)
    assert matching([c, a, b], [a, b]) == [1, 2] and matching([a, b], [a, b]) == [0, 1]
    nothing = matte()
    assert matching([nothing, nothing], [a, b]) == [0, 1]  # of equal ones the first


def test_recomposition_is_by_the_over_operator() -> None:
    whole = stack(matte(0, 1), matte(1, 2))
    half = replace(whole, frames={**whole.frames, "alpha.2": matte(1, 2) // 2})  # 127 of 255
    # column 1: blue over red, 2: blue over grey; each channel misses 128/255 of its step
    steps = (200 + 0 + 200) + (90 + 90 + 110)
    assert recomposition_error(half) == pytest.approx(steps * 128 / 255 / 24, abs=0.2)  # rounded


def test_tasks_give_all_foregrounds_or_the_named_ones() -> None:
    assert given_layers("fg2bg", TWO.layers) == ("foreground", "alpha", "foreground.2", "alpha.2")
    assert given_layers("blended+foreground.2", TWO.layers) == ("foreground.2", "blended")
    effects = layer_set("rgba+effects").layers
    assert given_layers("fg2bg", effects) == ("foreground", "alpha")
    assert given_layers("fg2bg", layer_set("rgb").layers) == ("foreground",)
    for wrong in ("foreground.3", "+".join(TWO.layers), "sideways"):
        with pytest.raises(ValueError, match="unknown task"):
            given_layers(wrong, TWO.layers)


def test_pieces_of_a_mask_are_the_largest_that_hang_together() -> None:
    mask = np.zeros((2, 1, 9), bool)
    mask[0, 0, [0, 1, 4, 5, 6]] = True
    mask[1, 0, [0, 1, 5, 8]] = True
    large, next_one, none = (p // 255 for p in split_mask(mask, 3))
    assert large[:, 0].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0, 0]] * 2
    assert next_one[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0] and next_one[1, 0, 5] == 1
    assert none[1, 0, 8] == 1 and none.sum() == 1
    assert split_mask(np.zeros((1, 2, 2), bool), 2)[1].sum() == 0


def test_baselines_for_several_foregrounds_threshold_and_split() -> None:
    """Two boxes apart, brighter than the ground: one threshold finds both, split tells them apart;
    a threshold for one of them alone cannot, since both have its colour."""

    def scene(shift: int) -> tuple[U8, list[U8]]:
        alphas = [np.zeros((3, 12, 24), np.uint8) for _ in range(2)]
        for t in range(3):
            alphas[0][t, 2:6, 1 + shift + t : 5 + shift + t] = 255
            alphas[1][t, 6:11, 14 + shift + t : 19 + shift + t] = 255
        lit = np.maximum(*alphas)[..., None] > 0
        return np.where(lit, 220, 60).repeat(3, -1).astype(np.uint8), alphas

    scores = several_baselines([scene(0), scene(1), scene(2)], [scene(3)])
    assert scores["luma, split"] == 1.0 and scores["empty matte"] == 0
    small, large = 3 * 16, 3 * 25
    assert scores["luma"] == pytest.approx((small + large) / (small + large) / 2)
    assert scores[f"{MOTION}, split"] < 0.6
    with pytest.raises(ValueError, match="one number of foregrounds"):
        several_baselines([scene(0)], [(scene(1)[0], scene(1)[1][:1])])


def test_one_corpus_is_scored_against_another_with_single_foregrounds(tmp_path: Path) -> None:
    corpus = several_corpus(tmp_path / "c", 2, 1, 3)
    request = EvaluateRequest(corpus.path, tmp_path / "out", predictions=corpus.path)
    made = run_evaluate(request)["tasks"]["decompose"]
    assert made["iou_each"] == {"mean": 1.0, "std": 0.0, "clips": 2}
    assert made["order"]["mean"] == 1.0 and made["iou_foreground.3"]["clips"] == 1
    assert made["iou"]["clips"] == 3
    assert "| order |" in (tmp_path / "out/tables.md").read_text()
    with (tmp_path / "out/clips.csv").open() as file:
        assert [row["iou_foreground.2"] for row in csv.DictReader(file)] == ["1.0", "", "1.0"]


def test_samples_of_several_foregrounds_are_read_with_each_of_them(tmp_path: Path) -> None:
    corpus, row = several_corpus(tmp_path / "c", 2), several_row(2)
    truth = stack_of_row(row, corpus.clip(0), TWO)
    swapped = {f"{kind}{a}": truth.layer(f"{kind}{b}") for kind in ("foreground", "alpha")
               for a, b in (("", ".2"), (".2", ""))}  # fmt: skip
    rest = {name: truth.layer(name) for name in ("background", "blended")}
    written = write_layers(tmp_path / "made" / row["id"], swapped | rest, {}, 8.0, {})
    assert written.foregrounds == ("foreground", "foreground.2")
    assert (tmp_path / "made" / row["id"] / "objects/alpha.2.mkv").is_file()
    request = EvaluateRequest(corpus.path, tmp_path / "out", predictions=tmp_path / "made")
    scores = run_evaluate(request)["tasks"]["decompose"]
    assert scores["order"]["mean"] == 0 and scores["iou"]["mean"] == 1
    both = truth.layer("alpha") > 0, truth.layer("alpha.2") > 0
    iou = (both[0] & both[1]).sum() / (both[0] | both[1]).sum()
    assert scores["iou_each"]["mean"] == pytest.approx(iou)


def test_given_layers_of_a_stack_reach_the_pipeline_and_come_back_by_name() -> None:
    truth = stack(matte(0, 1), matte(1, 2))
    asked = {}

    class Pipe:
        def __call__(self, **options: object) -> Pipe:
            asked.update(options)
            return self

        def sample(self, index: int) -> dict[str, U8]:
            return dict(truth.frames) | {"alpha": matte(5)}

    layers = ("foreground.2", "alpha.2", "foreground.3", "blended")
    (made,) = complete(Pipe(), [truth], layers, steps=1, guidance=1.0, seeds=[0])
    assert set(asked["given"][0]) == {"foreground.2", "alpha.2", "blended"}  # it has no third one
    assert asked["foregrounds"] == 2
    assert np.array_equal(made.layer("alpha"), matte(5)) and made.foregrounds == truth.foregrounds
