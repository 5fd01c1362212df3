"""Procedural media: deterministic, layered as documented, moving or still as their family says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from layerflow.evaluation import baselines, metrics
from layerflow.media import cells as media
from pipelines.procedural import art as procedural_art
from pipelines.procedural import media as procedural


def test_videos_have_truth_sidecars_and_equal_bytes(tmp_path: Path) -> None:
    options = {"count": 2, "seed": 5, "height": 64, "width": 96, "frames": 6}
    first = procedural.make_videos(tmp_path / "a", **options)
    again = procedural.make_videos(tmp_path / "b", **options)
    assert [p.name for p in first] == ["moving-000.mp4", "moving-001.mp4"]
    for one, two in zip(first, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
        truth = tmp_path / "a-truth" / f"{one.stem}.mkv"
        alpha = media.decode_alpha(truth.read_bytes())
        assert media.decode_color(one.read_bytes()).shape == (*alpha.shape, 3) == (6, 64, 96, 3)
        prompts = json.loads(one.with_suffix(".json").read_text())
        assert set(prompts) == {"foreground", "background", "blended"}
        assert prompts["blended"] == f"{prompts['foreground']} on {prompts['background']}"
    assert not list((tmp_path / "a").rglob("*.mkv")), "a job that reads the videos sees the truth"
    other = procedural.make_videos(tmp_path / "c", **{**options, "seed": 6})
    assert other[0].read_bytes() != first[0].read_bytes()


def test_a_set_can_be_extended(tmp_path: Path) -> None:
    few = procedural.make_stills(tmp_path / "few", count=2, seed=1, size=32)
    more = procedural.make_stills(tmp_path / "more", count=4, seed=1, size=32)
    assert [p.read_bytes() for p in few] == [p.read_bytes() for p in more[:2]]


def test_families_move_or_do_not() -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        _, alpha, _ = procedural.draw_video(rng, "moving", 160, 240, 16, pan=True)
        assert 1.5 <= metrics.drift(alpha) <= 5.1
        assert 0.03 < (alpha > 127).mean() < 0.3
        border = np.concatenate([alpha[:, [0, -1]].ravel(), alpha[:, :, [0, -1]].ravel()])
        assert border.max() == 0, "the subject left the picture"
    frames, alpha, _ = procedural.draw_video(np.random.default_rng(0), "still", 96, 128, 4)
    assert (frames == frames[0]).all() and (alpha == alpha[0]).all()


def test_a_cut_is_where_it_is_said_to_be() -> None:
    frames, alpha, _ = procedural.draw_video(np.random.default_rng(1), "cut", 96, 144, 10)
    change = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    assert int(change.argmax()) == 4 and change[4] > 3 * np.delete(change, 4).max()
    assert len(alpha) == 10


def test_only_a_panned_background_moves() -> None:
    def corner(pan: bool) -> float:
        frames, alpha, _ = procedural.draw_video(
            np.random.default_rng(7), "moving", 96, 144, 8, pan=pan
        )
        outside = alpha.max(0) == 0
        return float(np.abs(frames[0].astype(int) - frames[-1])[outside].mean())

    assert corner(False) < 0.5
    assert corner(True) > 5


def test_looks_differ_in_colour_and_edge() -> None:
    def still(look: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        subject = procedural_art.draw_subject(np.random.default_rng(index), look)
        return procedural_art.cutout(subject, 64)

    def red_minus_blue(look: str) -> float:
        pairs = [still(look, i) for i in range(12)]
        return float(np.mean([(c[..., 0] - c[..., 2])[a > 0.5].mean() for c, a in pairs]))

    def soft_share(look: str) -> float:
        pairs = [still(look, i)[1] for i in range(12)]
        return float(np.mean([((a > 0.15) & (a < 0.85)).sum() / (a > 0).sum() for a in pairs]))

    assert red_minus_blue("warm") > 0.25 > -0.1 > red_minus_blue("cool")
    assert abs(red_minus_blue("varied")) < 0.35
    assert abs(red_minus_blue("neutral")) < 0.25
    assert soft_share("varied") < 0.06 < 0.15 < soft_share("warm")


@pytest.mark.parametrize("look", ["cool", "warm"])
def test_no_threshold_of_colour_cuts_a_subject_out(look: str) -> None:
    pairs = []
    for index in range(48):
        rng = np.random.default_rng(index)
        subject = procedural_art.draw_subject(rng, look)
        centre, radius = tuple(rng.uniform(11, 21, 2)), rng.uniform(6, 10)
        colour, alpha = procedural_art.render_subject(subject, 32, 32, centre=centre, radius=radius)
        behind = procedural_art.background(rng, 32, 32)
        blended = alpha[..., None] * colour + (1 - alpha[..., None]) * behind
        pairs.append(tuple(procedural_art.to_u8(x)[None] for x in (blended, alpha)))
    scores = baselines.trivial_baselines(pairs, pairs)
    assert max(scores[feature] for feature in baselines.COLOUR) < 0.65


def test_cutouts_fit_and_fill_their_picture() -> None:
    for look in procedural_art.LOOKS:
        for index in range(10):
            subject = procedural_art.draw_subject(np.random.default_rng(index), look)
            _, alpha = procedural_art.cutout(subject, 64)
            border = np.concatenate([alpha[[0, -1]].ravel(), alpha[:, [0, -1]].ravel()])
            assert border.max() == 0.0
            assert (alpha > 0.5).mean() > 0.25


def test_still_files(tmp_path: Path) -> None:
    for path in procedural.make_stills(tmp_path / "s", count=2, seed=3, size=48, look="warm"):
        assert media.decode_png(path.read_bytes()).shape == (48, 48, 4)
        assert json.loads(path.with_suffix(".json").read_text())["foreground"] == "warm checks"
    for path in procedural.make_backgrounds(tmp_path / "b", count=2, seed=3, height=40, width=56):
        assert media.decode_png(path.read_bytes()).shape == (40, 56, 3)
    films = procedural.make_backgrounds(tmp_path / "f", count=2, seed=3, frames=4)
    first, second = (media.decode_color(path.read_bytes()) for path in films)
    assert first.shape == (4, 96, 96, 3)
    change = [np.abs(f[0].astype(int) - f[-1]).mean() for f in (first, second)]
    assert change[0] < 0.5 < 1.0 < change[1], "every other background pans"
    layered = procedural.make_layered_stills(tmp_path / "l", count=2, seed=3, size=32)
    for path in layered:
        behind = tmp_path / "l" / "background" / path.name
        assert media.decode_png(path.read_bytes()).shape == (32, 32, 4)
        assert media.decode_png(behind.read_bytes()).shape == (32, 32, 3)


def test_colour_gives_the_varied_matte_away_less_than_chance_would_hide() -> None:
    """No single colour threshold may cut the subjects out; otherwise nothing need be learnt."""
    clips = []
    for seed in range(24):
        rng = np.random.default_rng([seed, 9])
        blended, alpha, _ = procedural.draw_video(rng, "moving", 48, 48, 4)
        clips.append((blended, alpha))
    scores = baselines.trivial_baselines(clips[:12], clips[12:])
    plain = {k: v for k, v in scores.items() if k in baselines.COLOUR[:-1]}
    assert max(plain.values()) < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": ("moving", "flying")}, "families must be"),
        ({"families": ()}, "families must be"),
        ({"height": 8}, "too small"),
        ({"families": ("cut",), "frames": 1}, "too small"),
        ({"look": "loud"}, "look must be"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        procedural.make_videos(tmp_path / "x", count=1, seed=0, **options)
