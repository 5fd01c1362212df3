"""The paste job: sources of every kind, rules, bad input, and rows that depend on draws alone."""

from __future__ import annotations

import itertools
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.clip import LayeredClip
from layerflow.corpus.table import SCHEMA as ROWS
from layerflow.corpus.table import decode_row, encode_row, origin
from layerflow.corpus.writer import write_table
from layerflow.media.cells import (
    encode_alpha,
    encode_color,
    encode_png,
    write_prores4444,
    write_vp9_alpha,
)
from pipelines.engine.jobs import Outcome, make_recipe
from pipelines.inputs.sources import list_foregrounds
from pipelines.paste.job import paste_unit, run_paste
from pipelines.paste.plan import PastePlan, make_plan, plan_units
from pipelines.paste.sample import PasteContext
from tests.support.pasted import FRAMES, SIZE, backdrops, disc, options, run, scenery, stills, write


def a_clip(frames: int = FRAMES, seed: int = 0) -> LayeredClip:
    moving = np.stack([disc(64, at=2.0 * t - 4) for t in range(frames)])[:, 8:56]
    behind = scenery(seed, frames, *SIZE)
    clip = LayeredClip(
        np.ascontiguousarray(moving[..., :3]),
        np.ascontiguousarray(moving[..., 3]),
        behind,
        behind,
        prompts={"foreground": "a red disc", "background": "hills", "blended": "both"},
        fps=8.0,
    )
    return LayeredClip(**{**vars(clip), "blended": clip.recomposed()})


def a_corpus(path: Path, **quality: float) -> Path:
    rows = [
        encode_row(
            LayeredClip(**{**vars(a_clip(seed=i)), "kind": "mined"}),
            id=f"{i:016x}",
            origin=origin(f"videos/v{i}.mp4", "0" * 64, licence="CC0"),
            quality=quality,
            recipe="r",
        )
        for i in range(2)
    ]
    write_table(path, rows, ROWS)
    return path


def test_clips_are_exact_and_say_where_they_come_from(tmp_path: Path) -> None:
    fg = stills(tmp_path / "fg")
    (tmp_path / "fg/disc-0.json").write_text(json.dumps({"foreground": "a glowing coal"}))
    corpus = run(tmp_path, fg, backdrops(tmp_path / "bg"), licence="CC0")
    assert len(corpus) == 6
    for row in corpus.rows():
        clip, quality = decode_row(row), row["quality"]
        assert (clip.size, clip.num_frames, clip.kind) == (SIZE, FRAMES, "pasted")
        assert quality["equation_error"] <= 0.5 + 1e-4
        assert quality["encoded_error"] < 3 and quality["encoded_psnr"] > 35
        assert 0.02 <= quality["area_mean"] <= 0.6
        assert quality["visible_fraction"] >= 0.5
        uri = row["origin"]["uri"]
        assert row["origin"]["parents"][0] == uri and uri.startswith("disc-")
        assert row["origin"]["parents"][1].startswith("hill-")
        assert row["origin"]["licence"] == "CC0"
        subject = "a glowing coal" if uri == "disc-0.png" else "disc"
        assert clip.prompts == {
            "foreground": subject,
            "background": "hill",
            "blended": f"{subject}, hill",
        }
    assert len(set(corpus.ids())) == 6


def test_every_source_is_used_equally_often(tmp_path: Path) -> None:
    corpus = run(tmp_path, stills(tmp_path / "fg"), backdrops(tmp_path / "bg", 2), encoded_check=0)
    used = [row["origin"]["parents"] for row in corpus.rows(["origin"])]
    for place, each in ((0, 2), (1, 3)):
        names = [parents[place] for parents in used]
        assert {names.count(name) for name in names} == {each}


def digest(outcomes: list[Outcome]) -> list[Any]:
    return [row for outcome in outcomes for row in outcome.rows]


def test_a_million_clips_are_planned_in_little_memory(tmp_path: Path) -> None:
    said = options(tmp_path, tmp_path, tmp_path, count=1_000_000)
    units = plan_units(PastePlan((), ()), said)
    assert len(units) <= 5000
    covered = [(unit.payload["start"], unit.payload["stop"]) for unit in units]
    assert covered[0][0] == 0 and covered[-1][1] == 1_000_000
    assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))


def test_rows_do_not_depend_on_the_split_into_units(tmp_path: Path) -> None:
    said = options(tmp_path, stills(tmp_path / "fg"), backdrops(tmp_path / "bg"), objects=(1, 2))
    plan = make_plan(said)
    work = partial(paste_unit, context=PasteContext(plan, said, make_recipe("pasted", {}, 1).hash))
    whole = digest([work(unit.payload) for unit in plan_units(plan, said)])
    units = plan_units(plan, said, size=1)
    single = digest([work(unit.payload) for unit in reversed(units)][::-1])
    assert len(units) == 6
    assert whole == single


def test_a_second_run_does_nothing_and_another_seed_is_refused(tmp_path: Path) -> None:
    said = options(tmp_path, stills(tmp_path / "fg"), backdrops(tmp_path / "bg"), encoded_check=0)
    first = run_paste(said, workers=0, quiet=True)
    again = run_paste(said, workers=0, quiet=True)
    assert (again.kept, again.seconds) == (first.kept, 0.0)
    with pytest.raises(ValueError, match="seed: 3 there, 4 asked"):
        run_paste(said.model_copy(update={"seed": 4}), workers=0, quiet=True)


def test_seeds_give_other_clips(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    one = run(tmp_path, fg, bg, out=str(tmp_path / "a"), count=2, encoded_check=0)
    two = run(tmp_path, fg, bg, out=str(tmp_path / "b"), count=2, encoded_check=0, seed=4)
    assert one.row(0)["blended"] != two.row(0)["blended"]


def test_foregrounds_and_backgrounds_of_corpora(tmp_path: Path) -> None:
    corpus = a_corpus(tmp_path / "corpus")
    made = run(tmp_path, corpus, corpus, encoded_check=0, area=(0.1, 0.2))
    assert len(made) == 6
    row = made.row(0)
    assert row["foreground_prompt"] == "a red disc"
    assert row["background_prompt"] == "hills"
    assert row["origin"]["uri"].startswith("videos/v")
    assert "#" in row["origin"]["parents"][0]
    assert row["origin"]["licence"] == "CC0"


def test_the_quality_gate_holds_for_mined_foregrounds(tmp_path: Path) -> None:
    corpus = a_corpus(tmp_path / "corpus", recomposition_error=200.0, flicker=99.0)
    assert len(list_foregrounds([str(corpus)], "off")) == 2
    with pytest.raises(ValueError, match=r"no foreground in .*--gate"):
        list_foregrounds([str(corpus)], "standard")


def test_foregrounds_from_videos_with_alpha(tmp_path: Path) -> None:
    """Codecs whose alpha the default decoders drop must not come out opaque."""
    rgba = np.stack([disc(64, at=3.0 * t - 12) for t in range(12)])
    (tmp_path / "fg").mkdir()
    write_prores4444(tmp_path / "fg/a.mov", rgba, 8)
    write_vp9_alpha(tmp_path / "fg/b.webm", rgba, 8)
    made = run(tmp_path, tmp_path / "fg", backdrops(tmp_path / "bg"), encoded_check=0)
    assert len(made) == 6 and made.rejected() == []
    for index in range(6):
        alpha = made.clip(index).alpha
        assert 0.02 < (alpha > 200).mean() < 0.6
        assert (alpha < 50).mean() > 0.2


def test_foregrounds_from_a_video_and_its_matte(tmp_path: Path) -> None:
    rgba = np.stack([disc(64, at=3.0 * t - 12) for t in range(8)])
    write(tmp_path / "fg/it.mp4", encode_color(np.ascontiguousarray(rgba[..., :3]), 8))
    write(tmp_path / "fg/it.mask.mkv", encode_alpha(np.ascontiguousarray(rgba[..., 3]), 8))
    made = run(tmp_path, tmp_path / "fg", backdrops(tmp_path / "bg"), encoded_check=0)
    assert len(made) == 6 and made.rejected() == []
    assert made.row(0, ["origin"])["origin"]["uri"] == "it.mp4"


def test_numbered_frames_are_a_film(tmp_path: Path) -> None:
    for t in range(8):
        write(tmp_path / f"fg/ball/{t:04d}.png", encode_png(disc(64, at=3.0 * t - 12)))
        write(tmp_path / f"bg/hill/{t:04d}.png", encode_png(scenery(0, 8)[t]))
    sources = list_foregrounds([str(tmp_path / "fg")], "off")
    assert [(source.kind, source.uri, source.name) for source in sources] == [
        ("video", "ball", "ball")
    ]
    made = run(tmp_path, tmp_path / "fg", tmp_path / "bg", count=2, encoded_check=0)
    assert len(made) == 2 and made.rejected() == []
    behind = made.clip(0).background.astype(int)
    assert np.abs(behind[1:] - behind[:-1]).mean() > 0.5


def test_backgrounds_from_videos_move(tmp_path: Path) -> None:
    write(tmp_path / "bg/roll.mp4", encode_color(scenery(1, 16), 8))
    made = run(tmp_path, stills(tmp_path / "fg"), tmp_path / "bg", encoded_check=0, flip=False)
    assert len(made) == 6
    behind = made.clip(0).background.astype(int)
    assert np.abs(behind[1:] - behind[:-1]).mean() > 0.5
    assert made.row(0, ["origin"])["origin"]["parents"][1] == "roll.mp4"


def test_bad_sources_are_rejected_once_and_the_count_is_kept(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg", 2), backdrops(tmp_path / "bg", 2)
    write(fg / "text.png", b"this is no picture")
    write(fg / "opaque.png", encode_png(scenery(0)))
    write(bg / "short.mp4", encode_color(scenery(1, 2), 8))
    write(bg / "clear.png", encode_png(disc()))
    corpus = run(tmp_path, fg, bg, count=12, encoded_check=0)
    assert len(corpus) == 12
    reasons = {row["uri"]: row["reason"] for row in corpus.rejected()}
    assert len(corpus.rejected()) == 4
    assert "not a readable picture" in reasons["text.png"]
    assert "fully opaque" in reasons["opaque.png"]
    assert "a clip needs" in reasons["short.mp4"]
    assert "cannot be a background" in reasons["clear.png"]
    assert {row["origin"]["uri"] for row in corpus.rows(["origin"])} == {"disc-0.png", "disc-1.png"}


def test_draws_that_never_pass_are_rejected_with_their_scores(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    corpus = run(tmp_path, fg, bg, count=2, area_limits=(0.9, 1.0), attempts=2)
    assert len(corpus) == 0
    rejected = corpus.rejected()
    assert len(rejected) == 2
    assert "no draw passed in 2 attempts; the last: area" in rejected[0]["reason"]
    assert rejected[0]["quality"]["area_mean"] > 0


def test_inputs_that_cannot_work_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    fg = stills(tmp_path / "fg")
    (tmp_path / "empty").mkdir()
    for bg, reason in ((tmp_path / "empty", "no background"), (tmp_path / "nowhere", "no such")):
        with pytest.raises(ValueError, match=reason):
            run(tmp_path, fg, bg)
    assert not (tmp_path / "out").exists()


def test_sources_do_not_lead_out_of_their_folder(tmp_path: Path) -> None:
    fg = stills(tmp_path / "fg", 1)
    secret = write(tmp_path / "secret.png", encode_png(disc()))
    os.symlink(secret, fg / "link.png")
    assert [source.uri for source in list_foregrounds([str(fg)], "off")] == ["disc-0.png"]


def test_still_subjects_over_still_scenes_must_move(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    corpus = run(tmp_path, fg, bg, count=2, speed=(0.0, 0.0), still_camera=1.0, attempts=2)
    assert "nearly no motion" in corpus.rejected()[0]["reason"]


def test_several_objects_make_one_foreground(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    corpus = run(tmp_path, fg, bg, count=4, objects=(2, 2), area=(0.05, 0.1))
    for row in corpus.rows():
        assert len(row["origin"]["parents"]) == 3
        assert row["quality"]["equation_error"] <= 0.5 + 1e-4
