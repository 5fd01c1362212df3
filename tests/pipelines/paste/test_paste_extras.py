"""Columns beyond the layers: shadows with an owner, single objects, stored draws; refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.clip import LayeredClip, composite
from layerflow.corpus.columns import decode_objects, joined_schema, visible_alphas
from layerflow.corpus.derive import filter_corpus, merge_corpora, split_corpus
from layerflow.corpus.published import PublishedCorpus
from layerflow.corpus.row_check import check_row
from layerflow.corpus.table import EXTENDED_SCHEMA, SCHEMA, Corpus, decode_row, encode_row, origin
from layerflow.corpus.validate import validate
from layerflow.media.cells import decode_alpha, decode_color, encode_png
from manifests.paste import PasteOptions
from pipelines.paste.repeats import Repeats, signature
from pipelines.paste.scores import broken_rule, encode_checked
from pipelines.paste.shadow import Shadow, shade
from pipelines.vision.composite import Sprite, prefilter
from pipelines.vision.path import Path as Track
from tests.support.corpora import make_rows, write_corpus
from tests.support.pasted import FRAMES, SIZE, backdrops, disc, run, stills, write

PLAIN: dict[str, Any] = {"foregrounds": ["f"], "backgrounds": ["b"], "out": "o", "count": 1}


def standing_box(height: int = 96, width: int = 128) -> Sprite:
    rgba = np.full((40, 20, 4), 255, np.uint8)
    poses = np.tile([width / 2, height / 2, 1.0, 0.0], (2, 1))
    return Sprite([prefilter(rgba, 1.0)], Track(poses, 0.0, False, "ground"), (40, 20))


def test_a_shadow_darkens_the_ground_at_the_feet_and_nothing_far_away() -> None:
    ground = np.full((2, 96, 128, 3), 200, np.uint8)
    shaded = shade(ground, [standing_box()], Shadow(0.4, 0.6, 0.2, 0.5)).astype(int)
    feet = 48 + 19
    assert shaded[0, feet, 64, 0] < 120
    assert (shaded[0, :20] == 200).all() and (shaded[0, -10:] == 200).all()
    # The slant goes one way only.
    left, right = shaded[0, feet - 6, 45:52, 0].mean(), shaded[0, feet - 6, 77:84, 0].mean()
    assert abs(left - right) > 3
    assert np.array_equal(shaded[0], shaded[1])


def test_a_background_that_owns_the_shadow_keeps_its_plate(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    more: dict[str, Any] = {"count": 4, "placement": "ground", "flip": False}
    plain = run(tmp_path, fg, bg, out=str(tmp_path / "plain"), **more)
    shaded = run(tmp_path, fg, bg, out=str(tmp_path / "shaded"), shadow="background", **more)
    assert {row["shadow"] for row in plain.rows()} == {"none"}
    assert all(row["plate"] is None for row in plain.rows())
    for before, row in zip(plain.rows(), shaded.rows(), strict=True):
        assert row["shadow"] == "background"
        assert row["quality"]["equation_error"] <= 0.5 + 1e-4
        plate, behind = decode_color(row["plate"]), decode_color(row["background"])
        assert np.abs(plate.astype(int) - decode_color(before["background"])).mean() < 1
        darker = plate.astype(int).sum(-1) - behind.astype(int).sum(-1)
        assert darker.max() > 40 and darker.mean() > 0.5
        assert json.loads(row["draw"])["shadow"]["strength"] >= 0.2
    assert validate(shaded) == []


def test_single_objects_add_up_to_the_foreground(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    corpus = run(tmp_path, fg, bg, count=3, objects=(2, 3), area=(0.05, 0.15), placement="free")
    for row in corpus.rows():
        objects = decode_objects(row)
        assert 2 <= len(objects) <= 3
        assert [item.order for item in objects] == list(range(len(objects)))
        seen = sum(item.visible.astype(int) for item in objects)
        assert np.abs(seen - decode_alpha(row["alpha"])).max() <= len(objects)
        for item in objects:
            assert (item.visible <= item.amodal.astype(int) + 2).all()
            assert item.origin["uri"].startswith("disc-") and item.prompt == "disc"
        assert np.array_equal(objects[-1].visible, objects[-1].amodal)  # nothing before it
    assert validate(corpus) == []
    assert all(row["objects"] is None for row in run_single(tmp_path, fg, bg).rows())


def run_single(tmp: Path, fg: Path, bg: Path) -> Corpus:
    return run(tmp, fg, bg, out=str(tmp / "single"), count=1)


def test_files_of_one_name_in_two_folders_are_not_mixed_up(tmp_path: Path) -> None:
    """One process may run several jobs; it keeps what it decoded."""
    bg, seen = backdrops(tmp_path / "bg", 1), []
    for job in ("a", "b"):
        rgba = disc(colour=(200, 40, 40) if job == "a" else (40, 40, 200))
        write(tmp_path / job / "disc.png", encode_png(rgba))
        more: dict[str, Any] = {"count": 1, "harmonise": (0.0, 0.0), "encoded_check": 0}
        clip = run(tmp_path, tmp_path / job, bg, out=str(tmp_path / f"out-{job}"), **more).clip(0)
        seen.append(clip.foreground[clip.alpha > 250].mean(0))
    assert seen[0][0] > 150 > 80 > seen[1][0]


def test_visible_alphas_are_exact() -> None:
    rng = np.random.default_rng(0)
    alphas = [rng.integers(0, 256, (2, 5, 7)).astype(np.uint8) for _ in range(3)]
    seen = visible_alphas(alphas)
    clear = np.prod([1 - a / 255 for a in alphas], axis=0)
    assert np.abs(sum(a.astype(int) for a in seen) - 255 * (1 - clear)).max() <= 0.5 + 1e-9
    assert np.array_equal(seen[-1], alphas[-1])


def test_every_draw_is_stored(tmp_path: Path) -> None:
    corpus = run(tmp_path, stills(tmp_path / "fg"), backdrops(tmp_path / "bg"), count=2)
    notes = json.loads(corpus.row(1)["draw"])
    assert notes["index"] == 1 and notes["attempt"] >= 0
    (item,) = notes["objects"]
    assert len(item["poses"]) == FRAMES and len(item["poses"][0]) == 4
    for name in ("uri", "placement", "mirrored", "frames", "harmonise", "curve", "blur", "grain"):
        assert name in item


def row_with(alpha: np.ndarray, blended: np.ndarray, id: int = 0) -> dict[str, Any]:
    return {"id": f"{id:016x}", "draw": json.dumps({"signature": signature(alpha, blended)})}


def test_near_duplicates_are_told_from_other_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.paste.repeats.WINDOW", 8)
    alpha, blended = np.zeros((2, 64, 96), np.uint8), np.full((2, 64, 96, 3), 90, np.uint8)
    alpha[:, 20:44, 30:60] = 255
    moved = np.roll(alpha, 12, axis=2)
    refuse = Repeats()
    assert refuse(row_with(alpha, blended, 1)) is None
    noisy = (blended + np.arange(96, dtype=np.uint8)[:, None] % 3).astype(np.uint8)
    assert "nearly the same as clip 0000000000000001" in str(refuse(row_with(alpha, noisy, 2)))
    assert refuse(row_with(moved, blended, 3)) is None
    assert refuse(row_with(alpha, 255 - blended, 4)) is None
    assert refuse({"id": "5", "draw": None}) is None
    for number in range(8):  # the oldest are forgotten, memory stays the same
        assert refuse(row_with(alpha, np.full_like(blended, 10 + 9 * number), 10 + number)) is None
    assert len(refuse._ids) == 8 and refuse(row_with(moved, blended, 30)) is None


def test_repeated_clips_are_left_out_with_the_reason(tmp_path: Path) -> None:
    """An object that fills its clip over an even wall: there is hardly anything to vary."""
    y, x = np.indices((96, 128)) - np.array([[[47.5]], [[63.5]]])
    oval = np.full((96, 128, 4), 120, np.uint8)
    oval[..., 3] = np.where(np.hypot(x / 60, y / 44) < 1, 255, 0)
    write(tmp_path / "fg/oval.png", encode_png(oval))
    write(tmp_path / "bg/wall.png", encode_png(np.full((60, 80, 3), 90, np.uint8)))
    same: dict[str, Any] = {
        "count": 5,
        "placement": "ground",
        "speed": (0.01, 0.01),
        "area": (0.6, 0.6),
        "area_limits": (0.0, 1.0),
        "harmonise": (0.0, 0.0),
        "turn": 0.0,
        "zoom": 0.0,
        "encoded_check": 0,
    }
    kept = run(tmp_path, tmp_path / "fg", tmp_path / "bg", **same)
    reasons = [row["reason"] for row in kept.rejected() if row["stage"] == "duplicates"]
    assert reasons and len(kept) + len(reasons) == 5
    assert all(reason.startswith("nearly the same as clip") for reason in reasons)
    out = str(tmp_path / "all")
    every = run(tmp_path, tmp_path / "fg", tmp_path / "bg", out=out, repeats=True, **same)
    assert len(every) == 5


def test_clipped_histograms_are_refused() -> None:
    said = PasteOptions.model_validate(PLAIN)
    scores = {"area_mean": 0.2, "visible_fraction": 1.0, "motion": 3.0}
    fine = scores | {"exposure_low": 0.1, "exposure_high": 0.1}
    black = scores | {"exposure_low": 0.5, "exposure_high": 0.2}

    def reason(scores: dict[str, float], clipped: float, background: float) -> str | None:
        return broken_rule(scores, said, moving=False, clipped=clipped, background=background)

    assert reason(fine, 0.0, 0.1) is None
    assert "0.70 of the object is pure" in str(reason(black, 0.0, 0.0))
    assert "0.80 of the background is pure" in str(reason(fine, 0.0, 0.8))
    assert "would clip" in str(reason(fine, 0.2, 0.0))


def test_a_clip_that_codes_badly_is_coded_again_finer() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4, 64, 96, 3)).astype(np.uint8)
    alpha = np.full((4, 64, 96), 128, np.uint8)
    clip = LayeredClip(noise, alpha, noise, composite(noise, alpha, noise))
    parts: dict[str, Any] = {"id": "0" * 16, "origin": origin("a", "0" * 64), "recipe": "r"}
    rough = encode_checked(clip, {}, crf=30, min_psnr=0, **parts)
    fine = encode_checked(clip, {}, crf=30, min_psnr=38.0, **parts)
    assert rough["quality"]["encoded_psnr"] < 38.0 <= fine["quality"]["encoded_psnr"]
    assert len(fine["blended"]) > len(rough["blended"])


def test_damaged_extras_are_found(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    more: dict[str, Any] = {"objects": (2, 2), "area": (0.05, 0.1), "shadow": "background"}
    row = run(tmp_path, fg, bg, count=1, placement="ground", **more).row(0)
    assert check_row(row, 0).problems == ()
    cases = {
        "plate": row | {"plate": None},
        "shadow": row | {"shadow": "foreground"},
        "objects": row | {"objects": row["objects"][::-1]},
        "objects.0.visible_alpha": row
        | {"objects": [row["objects"][0] | {"visible_alpha": b"no"}, row["objects"][1]]},
        "media cells": row
        | {"objects": [dict(one, visible_alpha=one["amodal_alpha"]) for one in row["objects"]][:1]},
    }
    for field, damaged in cases.items():
        problems = check_row(damaged, 0).problems
        assert problems and problems[0].field == field, (field, problems)


def test_corpora_with_and_without_the_extra_columns_live_together(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    shaded = run(tmp_path, fg, bg, count=2, shadow="background", placement="ground")
    old = Corpus.open(write_corpus(tmp_path / "old", make_rows(3)))
    assert old.schema.equals(SCHEMA) and shaded.schema.equals(EXTENDED_SCHEMA)
    merge_corpora([old, shaded], tmp_path / "merged")
    merged = Corpus.open(tmp_path / "merged")
    assert len(merged) == 5 and merged.schema.equals(EXTENDED_SCHEMA)
    assert [row["shadow"] for row in merged.rows()] == [None] * 3 + ["background"] * 2
    assert validate(merged) == [] and validate(old) == []
    filter_corpus(merged, tmp_path / "some", where=["kind==pasted"])
    assert Corpus.open(tmp_path / "some").row(2)["plate"] == shaded.row(1)["plate"]
    split_corpus(merged, tmp_path / "split", {"train": 0.5, "test": 0.5})
    assert joined_schema([SCHEMA, SCHEMA.remove(0)]) is None

    import datasets

    loaded = datasets.load_from_disk(str(tmp_path / "merged"))
    assert loaded[0]["plate"] is None and loaded[3]["plate"] == shaded.row(0)["plate"]


def test_published_corpora_keep_what_is_filled(tmp_path: Path) -> None:
    from pipelines.publish.files import PublishOptions
    from pipelines.publish.job import run_publish

    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    more: dict[str, Any] = {"objects": (2, 2), "area": (0.05, 0.1), "licence": "CC0-1.0"}
    corpus = run(tmp_path, fg, bg, count=2, shadow="background", placement="ground", **more)
    options = PublishOptions("someone/some", licence="cc0-1.0")
    run_publish(corpus.path, options, dry_run=tmp_path / "hub", quiet=True, workers=0)
    there = PublishedCorpus.open(tmp_path / "hub")
    for mine, theirs in zip(corpus.rows(), there.rows(), strict=True):
        for name in ("shadow", "plate", "draw"):
            assert theirs[name] == mine[name]
        assert theirs["objects"][1]["amodal_alpha"] == mine["objects"][1]["amodal_alpha"]
    assert "| plate |" in (tmp_path / "hub/README.md").read_text()


def test_old_rows_without_extras_decode(tmp_path: Path) -> None:
    row = make_rows(1)[0]
    assert "plate" not in row and decode_objects(row) == []
    assert decode_row(row).kind == "pasted"
    clip = replace(decode_row(row))
    assert encode_row(clip, id="0" * 16, origin=row["origin"], quality={}, recipe="r")["alpha"]


def test_binary_mattes_get_a_soft_edge_inside_their_outline(tmp_path: Path) -> None:
    rgba = disc()
    rgba[..., 3] = np.where(rgba[..., 3] > 127, 255, 0)
    write(tmp_path / "fg/hard.png", encode_png(rgba))
    corpus = run(tmp_path, tmp_path / "fg", backdrops(tmp_path / "bg"), count=1)
    alpha = corpus.clip(0).alpha
    assert ((alpha > 40) & (alpha < 215)).sum() > 20 and corpus.clip(0).size == SIZE


@pytest.mark.parametrize("field", ["max_clipped", "max_exposure"])
def test_limits_are_shares(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        PasteOptions.model_validate(PLAIN | {field: 1.5})


def test_the_commands_take_what_a_manifest_can_say(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from layerflow.cli.main import build_app

    fg, bg = stills(tmp_path / "fg", 1), backdrops(tmp_path / "bg", 1)
    common = ["--workers", "0", "--quiet", "--crf", "20", "--min-psnr", "0", "--licence", "CC0-1.0"]
    said = ["--size", "48x64", "--frames", "4", "--shadow", "background", "--placement", "ground"]
    said += ["--set", "shutter=0", "--set", "area=0.1,0.2", "--deadline", "20"]
    call = ["paste", "--foregrounds", str(fg), "--backgrounds", str(bg), "--count", "1"]
    done = CliRunner().invoke(build_app(), [*call, "--out", str(tmp_path / "c"), *said, *common])
    assert done.exit_code == 0, done.output
    options = Corpus.open(tmp_path / "c").info["options"]
    assert (options["crf"], options["shadow"], options["shutter"]) == (20, "background", 0)
    assert options["area"] == [0.1, 0.2] and options["licence"] == "CC0-1.0"
    call = ["pack", str(fg), "--fill", "plain", "--layout", "rgba", "--seed", "3"]
    done = CliRunner().invoke(build_app(), [*call, "--out", str(tmp_path / "p"), *common])
    assert done.exit_code == 0, done.output
    assert Corpus.open(tmp_path / "p").info["options"]["fill"] == "plain"
    wrong = [*call, "--column", "nonsense", "--out", str(tmp_path / "q")]
    failed = CliRunner().invoke(build_app(), wrong)
    assert failed.exit_code != 0 and "NAME=VALUE" in str(failed.exception or failed.output)
