"""The auto backend: motion and networks vote, and the vote is on record."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from layerflow import weights
from layerflow.corpus.columns import EXTENDED_SCHEMA, QUALITY, SCHEMA, joined_schema
from layerflow.corpus.scores import names_of
from manifests.mine import MineOptions
from pipelines.engine.jobs import make_recipe
from pipelines.gates import judge
from pipelines.matting import make_backend
from pipelines.matting.auto.backend import AutoMatting, _at
from pipelines.matting.auto.carry import carry
from pipelines.matting.auto.fuse import _View, _weights
from pipelines.matting.auto.looks import Box, Looks, Seen, boxes_around, key_frames, look
from pipelines.matting.auto.networks import resolved
from pipelines.matting.auto.sources import Source
from pipelines.matting.motion.backend import MotionMatting, prepare
from pipelines.mine import job
from pipelines.mine.window import matting_backend
from pipelines.vision.evidence import Matches, grid, match
from pipelines.vision.registration import register
from tests.support.matting_clips import Truth, mean_iou, moving_disc
from tests.support.mined import green_screen, options
from tests.support.salient import Salient
from tests.support.tiny_networks import disc_mask, make_onnx


def still_disc() -> Truth:
    return moving_disc(10, pan=0.0, speed=0.0)


def standing_aside(count: int) -> np.ndarray:
    """A still disc in the corner of frames of 160x240, where nothing is to be seen."""
    return np.repeat(disc_mask(160, 240, 36, 36, 26)[None], count, axis=0)


def test_a_subject_that_stands_still_is_taken_from_the_network() -> None:
    clip = still_disc()
    assert not make_backend("motion")(clip.frames).alpha.any()
    matte = AutoMatting(networks=[Salient(clip.frames, clip.alpha)])(clip.frames)
    assert mean_iou(matte.alpha, clip.alpha) > 0.9
    assert matte.confidence["u2netp_vote"] > 0.9 and matte.confidence["motion_vote"] == 0
    # Nothing contradicts what the network takes of a still scene, be it furniture.
    assert "motion_contrast 0 below" in str(judge(matte.confidence, "standard"))
    assert judge(matte.confidence, "loose") is None


def test_a_mover_is_taken_from_motion_where_the_network_sees_something_else() -> None:
    clip = moving_disc(10, pan=0.0)
    network = Salient(clip.frames, standing_aside(10))
    matte = AutoMatting(networks=[network])(clip.frames)
    assert mean_iou(matte.alpha, clip.alpha) > 0.9
    assert matte.confidence["motion_vote"] > 0.9 and matte.confidence["u2netp_vote"] < 0.1


def test_sources_that_disagree_are_refused_by_the_gate_and_ones_that_agree_pass() -> None:
    clip = moving_disc(10, pan=0.0)
    apart, one = (
        AutoMatting(networks=[Salient(clip.frames, answer)])(clip.frames).confidence
        for answer in (standing_aside(10), clip.alpha)
    )
    assert "matte_" in str(judge(apart, "standard"))
    assert judge(one, "strict") is None
    assert apart["matte_confidence"] < 0.6 * one["matte_confidence"]


def test_what_a_network_adds_to_a_mover_counts_only_if_it_moves_too() -> None:
    clip = moving_disc(10, pan=0.0)
    beside = np.repeat(disc_mask(160, 240, 40, 120, 40)[None], 10, axis=0)
    both = (clip.alpha > 0.5) | beside
    matte = AutoMatting(networks=[Salient(clip.frames, both)])(clip.frames)
    assert mean_iou(matte.alpha, clip.alpha) > 0.85
    assert (matte.alpha[beside & (clip.alpha == 0)] > 0.5).mean() < 0.1


def test_without_networks_it_is_motion_bit_for_bit() -> None:
    clip = moving_disc(6)
    ours, motion = AutoMatting("motion")(clip.frames), make_backend("motion")(clip.frames)
    assert np.array_equal(ours.alpha, motion.alpha) and ours.confidence == motion.confidence


def test_clips_too_small_for_motion_are_left_to_the_network() -> None:
    clip = still_disc()
    network = Salient(clip.frames, clip.alpha)
    one = AutoMatting(networks=[network])(clip.frames[:1])
    assert mean_iou(one.alpha, clip.alpha[:1]) > 0.9
    empty = AutoMatting(networks=[Salient(clip.frames, 0 * clip.alpha)])(clip.frames)
    assert not empty.alpha.any() and empty.confidence["matte_confidence"] == 0


def test_the_same_clip_gives_the_same_matte() -> None:
    clip = moving_disc(6)
    first, second = (
        AutoMatting(networks=[Salient(clip.frames, clip.alpha)])(clip.frames) for _ in range(2)
    )
    assert np.array_equal(first.alpha, second.alpha) and first.confidence == second.confidence


def test_a_field_of_key_frames_is_carried_along_the_flow() -> None:
    clip = moving_disc(9, pan=0.0, speed=3.0)
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.frames])
    matches = match(gray, register(gray), 1)
    keys = key_frames(9)
    assert keys == [2, 6]
    found, same = carry(clip.alpha[keys], keys, 9, matches)
    assert mean_iou(found, clip.alpha) > 0.95 and same[2, 6] > 0.9 and len(same) == 1
    swapped = np.stack([clip.alpha[2], np.roll(clip.alpha[6], 80, axis=1)])
    assert carry(swapped, keys, 9, matches)[1][2, 6] < 0.2
    assert [key_frames(n) for n in (1, 2, 16)] == [[0], [1], [2, 6, 10, 14]]


def still_matches(count: int, size: tuple[int, int]) -> list[Matches]:
    """Flow that says that nothing moves."""
    pairs = [(t, t + step) for t in range(count) for step in (-1, 1) if 0 <= t + step < count]
    return [Matches(a, b, grid(*size)) for a, b in pairs]


def test_a_network_looks_again_only_where_what_it_saw_does_not_fit() -> None:
    calm = np.zeros((16, 40, 60), np.float32)
    calm[:, 10:20, 10:20] = 1
    fast = calm.copy()
    fast[8:] = np.roll(calm[8:], 30, axis=2)  # the flow knows nothing of it
    asked: list[list[int]] = []

    def seen(truth: np.ndarray) -> Seen:
        def ask(frames: list[int]) -> np.ndarray:
            asked.append(frames)
            return truth[frames]

        asked.clear()
        return look(ask, key_frames(16), 2, 16, still_matches(16, (40, 60)))

    found = seen(calm)
    assert asked == [[2, 6, 10, 14]] == [found.frames] and found.steady == 1.0
    found = seen(fast)
    assert asked == [[2, 6, 10, 14], [8], [7]] and found.frames == [2, 6, 7, 8, 10, 14]
    assert np.array_equal(found.field >= 0.5, fast >= 0.5)
    assert found.steady == pytest.approx(0.8)  # four of five pairs are the same thing
    blind = calm.copy()
    blind[6] = 0.1  # nothing is sure there: it says nothing, and the frames beside it are asked
    found = seen(blind)
    assert asked[1] == [4, 8] and np.array_equal(found.field >= 0.5, calm >= 0.5)
    blind[:12] = 0.1
    found = seen(blind)
    assert asked[1:] == []  # one of four looks: it goes no further
    assert np.array_equal(found.field >= 0.5, calm >= 0.5)
    assert not seen(np.zeros_like(calm)).field.any()


def test_boxes_hold_the_subject_with_a_margin_and_are_the_frame_for_a_large_one() -> None:
    mask = np.zeros((3, 48, 72), bool)
    mask[0, 10:20, 30:40] = True
    mask[2, 40:48, 60:72] = True  # in the corner
    one, same, corner = boxes_around(mask, (480, 720))
    assert one == same  # of a frame without it: of the nearest one
    assert one.top < 90 < 210 < one.top + one.height and one.left < 290
    assert 100 < one.height < 200 and one.height == one.width
    assert corner.top + corner.height == 480 and corner.left + corner.width == 720
    mask[:] = True
    assert boxes_around(mask, (480, 720)) == [Box(0, 0, 480, 720)] * 3


def looks_of(clip: Truth, answer: np.ndarray) -> tuple[int, int]:
    """How often a network that answers so is shown the whole frame, and how often a part of it."""
    network = Salient(clip.frames, answer)
    AutoMatting(networks=[network])(clip.frames)
    whole = network.shown.count(clip.frames.shape[1:3])
    return whole, len(network.shown) - whole


def test_networks_look_first_at_what_motion_is_sure_of_else_at_whole_frames() -> None:
    moves = moving_disc(8, pan=0.0, radius=14)
    still = moving_disc(8, pan=0.0, speed=0.0, radius=14)
    # It is what networks see too: nothing else is looked at.
    assert looks_of(moves, moves.alpha) == (0, len(key_frames(8)))
    # They see nothing there, then something else elsewhere, and the box of the mover is known.
    assert looks_of(moves, standing_aside(8)) == (1, len(key_frames(8)))
    whole, part = looks_of(still, still.alpha)
    assert whole == len(key_frames(8)) == part


def test_a_small_subject_is_looked_at_closely() -> None:
    for speed in (0.0, 2.0):
        clip = moving_disc(8, pan=0.0, radius=14, speed=speed)
        network = Salient(clip.frames, clip.alpha)
        matte = AutoMatting(networks=[network])(clip.frames)
        assert mean_iou(matte.alpha, clip.alpha) > 0.9
        close = [size for size in network.shown if size != (160, 240)]
        assert close and all(28 < height <= 60 and 28 < width <= 60 for height, width in close)


def test_what_only_the_whole_frame_shows_is_kept() -> None:
    class Farsighted(Salient):
        def predict(self, frames: np.ndarray) -> np.ndarray:
            return super().predict(frames) * (frames.shape[1:3] == (160, 240))

    clip = moving_disc(8, pan=0.0, speed=0.0)
    network = Farsighted(clip.frames, clip.alpha)
    matte = AutoMatting(networks=[network])(clip.frames)
    assert len(set(network.shown)) > 1
    assert mean_iou(matte.alpha, clip.alpha) > 0.85 and matte.confidence["u2netp_vote"] > 0.85


def test_what_was_one_subject_from_afar_is_one_from_near() -> None:
    """Closer looks see the post that a dog stands behind: its head is no subject of its own."""
    clip = moving_disc(8, pan=0.0, speed=0.0)
    body, head, post = (np.zeros((8, 160, 240), np.float32) for _ in range(3))
    body[:, 60:110, 60:120], head[:, 70:86, 140:156], post[:, 70:86, 120:140] = 1, 1, 1
    near = Salient(clip.frames, body + head)

    class Network(Salient):
        def predict(self, frames: np.ndarray) -> np.ndarray:
            whole = frames.shape[1:3] == (160, 240)
            return super().predict(frames) if whole else near.predict(frames)

    apart = AutoMatting(networks=[near])(clip.frames).alpha
    assert apart[body > 0].mean() > 0.8 and apart[head > 0].mean() < 0.1
    behind = AutoMatting(networks=[Network(clip.frames, body + head + post)])(clip.frames).alpha
    assert behind[body > 0].mean() > 0.8 and behind[head > 0].mean() > 0.8


def test_a_sure_mover_vouches_for_a_network_that_sees_the_same() -> None:
    mover = np.zeros((1, 10, 10), np.float32)
    mover[:, :, :5] = 1

    def weight_of_a_network(columns: int, trust: float) -> float:
        seen = np.zeros_like(mover)
        seen[:, :, :columns] = 1
        sources = [Source("motion", mover, trust, 1.0), Source("u2netp", seen, 0.0, 1.0)]
        views = [_View(one.field.ravel(), one.field) for one in sources]
        return float(_weights(sources, views)[1])

    assert weight_of_a_network(10, 1.0) < 0.05 < 0.4 < weight_of_a_network(7, 1.0)
    assert weight_of_a_network(7, 0.5) == pytest.approx(weight_of_a_network(7, 1.0))
    assert weight_of_a_network(5, 1.0) == 1.0


def test_of_a_closer_look_only_other_things_are_left_out() -> None:
    clip = moving_disc(3, pan=0.0, speed=0.0)
    motion = MotionMatting()
    work = prepare(clip.frames, motion.work_area, motion.segments, None, None, None)
    mask, field = np.zeros((3, 160, 240), np.float32), np.zeros((3, 160, 240), np.float32)
    mask[:, 40:80, 40:80] = 1
    field[:, 40:80, 40:80], field[:, 90:140, 40:80], field[:, 40:80, 150:200] = 1, 0.4, 1
    height, width = work.gray.shape[1:]
    small = np.stack([cv2.resize(f, (width, height)) for f in field])
    lies = np.stack([cv2.resize(m, (width, height)) > 0.5 for m in mask])
    found = _at(work, Source("u2netp", small, 0.9, 1.0), lies)
    grown = np.stack([cv2.resize(f, (240, 160)) for f in found.field])
    assert grown[:, 50:70, 50:70].min() > 0.9 and grown[:, 100:130, 50:70].min() > 0.3
    assert grown[:, 50:70, 160:190].max() < 0.1 and found.trust == 0.9
    elsewhere = _at(work, Source("u2netp", small, 0.9, 1.0), np.roll(lies, -height // 3, 1))
    left = (elsewhere.field >= 0.5).sum() / (small >= 0.5).sum()
    assert elsewhere.trust == 0.0 and left < 0.05


def test_no_look_is_taken_twice_and_boxes_that_fit_are_kept() -> None:
    clip = moving_disc(3, pan=0.0)
    network = Salient(clip.frames, clip.alpha)
    looks = Looks(network, clip.frames, (80, 120))
    boxes = [Box(0, 0, 100, 120), Box(20, 30, 100, 120), Box(20, 30, 90, 120)]
    said = looks.ask(boxes, [0, 1, 2])
    assert network.shown == [(100, 120), (100, 120), (90, 120)]
    assert np.array_equal(looks.ask(boxes, [2, 0]), said[[2, 0]]) and len(network.shown) == 3
    assert not said[1, :10].any() and not said[1, :, :15].any()  # outside of its box
    looks.ask([Box(1, 0, 100, 120)] * 3, [1])
    assert len(network.shown) == 4
    masks = [
        np.roll(np.repeat(disc_mask(96, 144, 40, 60, 20)[None], 2, 0), x, 2) for x in (0, 1, 9)
    ]
    first, near, far = (boxes_around(mask > 0.5, (480, 720)) for mask in masks)
    assert near != first != far
    assert boxes_around(masks[1] > 0.5, (480, 720), first) == first
    assert boxes_around(masks[2] > 0.5, (480, 720), first) == far


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> weights.Weights:
    """The weights ``u2netp`` stand for a network of one layer, and lie in the weights folder."""
    (tmp_path / "home").mkdir()
    path = make_onnx(tmp_path / "home" / "u2netp.onnx")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    entry = replace(weights.known("u2netp"), size=len(content), sha256=digest)
    monkeypatch.setattr(weights, "REGISTRY", (entry,))
    monkeypatch.setenv(weights.HOME, str(tmp_path / "home"))
    return entry


def test_weights_in_the_folder_take_part_and_are_part_of_the_recipe(
    tiny: weights.Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = resolved("auto")
    assert name == f"auto:u2netp@{tiny.sha256}" == resolved("auto:u2netp") == resolved(name)
    backend = make_backend(name)
    assert isinstance(backend, AutoMatting) and [n.name for n in backend.networks] == ["u2netp"]
    assert backend.networks[0].predict(np.full((1, 40, 60, 3), 200, np.uint8)).shape == (1, 40, 60)
    assert capsys.readouterr().err == ""
    alone = resolved("auto:motion")

    def recipe(matting: str) -> str:
        said = options(tmp_path, tmp_path / "c", matting=matting).model_dump(mode="json")
        return make_recipe("mined", said, 6).hash

    other = f"auto:u2netp@{'0' * 64}"
    assert len({recipe(name), recipe(alone), recipe(other)}) == 3
    with pytest.raises(ValueError, match="are others"):
        resolved(other)
    with pytest.raises(ValueError, match="no weights are known as 'sam'"):
        resolved("auto:sam")


def test_a_machine_without_the_weights_stops_the_job_and_rejects_nothing(
    tiny: weights.Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    green_screen(tmp_path / "a.mp4", seed=1)
    said = options(tmp_path / "a.mp4", tmp_path / "c", matting="auto")
    matting_backend.cache_clear()
    real = job.check_request

    def and_then_they_go(*asked: object) -> float:
        share = real(*asked)  # type: ignore[arg-type]
        matting_backend.cache_clear()
        (tmp_path / "home" / "u2netp.onnx").rename(tmp_path / "away")
        return share

    monkeypatch.setattr(job, "check_request", and_then_they_go)
    with pytest.raises(OSError, match=r"not work on this machine.*layerflow weights get u2netp"):
        job.run_mine(said, workers=0)
    assert not (tmp_path / "c" / "rejected").exists()
    (tmp_path / "away").rename(tmp_path / "home" / "u2netp.onnx")
    monkeypatch.setattr(job, "check_request", real)
    assert job.run_mine(said, workers=0).kept == 2  # it goes on


def test_auto_is_the_default_and_without_weights_it_is_the_recipe_of_motion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(weights.HOME, str(tmp_path))
    said = MineOptions(inputs=["a"], out="c", size="96x128")
    assert said.matting == "auto" and resolved(said.matting) == "motion"


def test_without_weights_auto_says_so_and_names_that_cannot_be_kept_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(weights.HOME, str(tmp_path))
    assert {resolved(name) for name in ("auto", "auto:motion", "motion")} == {"motion"}
    assert capsys.readouterr().err.count("motion alone") == 1
    with pytest.raises(ValueError, match="layerflow weights get u2netp"):
        resolved("auto:u2netp")
    with pytest.raises(ValueError, match="has no weights"):
        make_backend("auto", weights=tmp_path / "x.onnx")


def test_every_source_has_a_column_for_its_vote_and_older_corpora_still_join() -> None:
    votes = {"motion_vote", *(f"{entry.name}_vote" for entry in weights.REGISTRY)}
    assert {name for name in names_of("matting") if name.endswith("_vote")} == votes
    at = SCHEMA.get_field_index("quality")
    fewer = pa.struct([field for field in QUALITY if field.name not in votes])
    older = SCHEMA.set(at, SCHEMA.field(at).with_type(fewer))
    assert joined_schema([older, EXTENDED_SCHEMA]) == EXTENDED_SCHEMA
    foreign = SCHEMA.set(at, SCHEMA.field(at).with_type(pa.struct([("beauty", pa.float32())])))
    assert joined_schema([foreign, EXTENDED_SCHEMA]) is None
