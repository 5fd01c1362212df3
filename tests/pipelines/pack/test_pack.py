"""The pack job: stills with and without backgrounds, pairs, triplets, prompts, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerflow.clip import U8, composite
from layerflow.corpus.table import Corpus
from layerflow.media.cells import encode_color, encode_png
from manifests.pack import PackOptions
from pipelines.engine.jobs import make_recipe
from pipelines.pack import job as pack
from pipelines.pack.job import pack_unit
from pipelines.pack.plan import make_plan, plan_units
from pipelines.pack.read import made_up_background
from pipelines.pack.still import PackContext
from pipelines.readers.layered_stills import fill_behind
from tests.support.packed import disc, only, run, slope, write


def test_a_still_with_its_background(tmp_path: Path) -> None:
    rgba = disc()
    write(tmp_path / "in/red_ball.png", rgba)
    write(tmp_path / "in/red_ball.bg.png", slope())
    corpus = run(tmp_path, tmp_path / "in")
    clip = only(corpus)
    assert (clip.kind, clip.num_frames, clip.background_kind) == ("image", 1, "real")
    assert np.array_equal(clip.alpha[0], rgba[..., 3])
    assert np.array_equal(clip.background[0], slope())
    assert np.array_equal(clip.foreground[0][rgba[..., 3] > 0], rgba[..., :3][rgba[..., 3] > 0])
    assert clip.prompts["foreground"] == "red ball"
    assert corpus.row(0, ["origin"])["origin"]["uri"] == "red_ball.png"


def test_folders_of_foregrounds_and_backgrounds(tmp_path: Path) -> None:
    for k in range(2):
        write(tmp_path / f"in/foreground/s{k}.png", disc(colour=(200, 90 * k, 20)))
        write(tmp_path / f"in/background/s{k}.png", slope(level=60 + 50 * k))
    (tmp_path / "in/foreground/s0.json").write_text('{"foreground": "a ball"}')
    (tmp_path / "in/background/s0.txt").write_text("a grey slope")
    corpus = run(tmp_path, tmp_path / "in")
    assert len(corpus) == 2
    assert np.array_equal(corpus.clip(1).background[0], slope(level=110))
    assert corpus.clip(0).prompts == {
        "foreground": "a ball",
        "background": "a grey slope",
        "blended": "a ball, a grey slope",
    }


@pytest.mark.parametrize("fill", ["blurred", "plain"])
def test_a_still_without_a_background_gets_a_filled_one(tmp_path: Path, fill: str) -> None:
    write(tmp_path / "in/ball.png", disc())
    clip = only(run(tmp_path, tmp_path / "in", fill=fill))
    assert clip.background_kind == "filled"
    assert fill in clip.prompts["background"]
    spread = float(np.ptp(clip.background[0].astype(int), axis=(0, 1)).max())
    assert spread == 0 if fill == "plain" else spread > 5


def test_backgrounds_are_drawn_by_seed_from_the_folder_backgrounds(tmp_path: Path) -> None:
    for k in range(6):
        write(tmp_path / f"in/ball{k}.png", disc())
        write(tmp_path / f"in/backgrounds/hill{k}.png", slope(60, 90, level=30 * k))
    one, same, other = (
        run(tmp_path, tmp_path / "in", out=name, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    drawn = [[row["origin"]["parents"][1] for row in c.rows()] for c in (one, same, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(parent.startswith("backgrounds/hill") for parent in drawn[0])
    assert one.clip(0).background_kind == "real"
    assert one.clip(0).prompts["background"] == "hill"
    assert one.row(0)["id"] == same.row(0)["id"] != other.row(0)["id"]


def test_a_picture_and_its_matte_give_colour_and_a_filled_background(tmp_path: Path) -> None:
    rgba, behind = disc(), slope(level=180)
    a = rgba[..., 3:] / 255
    picture = np.rint(rgba[..., :3] * a + behind * (1 - a)).astype(np.uint8)
    write(tmp_path / "in/train/image/x.png", picture)
    write(tmp_path / "in/train/alpha/x.png", rgba[..., 3])
    clip = only(run(tmp_path, tmp_path / "in"))
    assert clip.background_kind == "filled"
    soft = (rgba[..., 3] > 90) & (rgba[..., 3] < 200)
    assert np.abs(clip.foreground[0][soft].astype(int) - (210, 70, 40)).mean() < 15
    assert np.abs(clip.background[0].astype(int) - behind).mean() < 6
    assert np.abs(clip.blended[0].astype(int) - picture).mean() < 4


def test_a_triplet_uses_its_own_background(tmp_path: Path) -> None:
    rgba, behind = disc(), slope(level=150)
    a = rgba[..., 3:] / 255
    picture = np.rint(rgba[..., :3] * a + behind * (1 - a)).astype(np.uint8)
    for name, layer in (("com", picture), ("pha", rgba[..., 3]), ("bgr", behind)):
        write(tmp_path / f"in/{name}/0001.png", layer)
    clip = only(run(tmp_path, tmp_path / "in"))
    assert clip.background_kind == "real"
    assert np.array_equal(clip.background[0], behind)
    assert np.abs(clip.blended[0].astype(int) - picture).max() <= 4


def test_size_covers_and_keeps_the_equation(tmp_path: Path) -> None:
    write(tmp_path / "in/ball.png", disc(96))
    clip = only(run(tmp_path, tmp_path / "in", size="32x48"))
    assert clip.size == (32, 48)


def test_prompts_of_a_table(tmp_path: Path) -> None:
    write(tmp_path / "in/ball.png", disc())
    table = tmp_path / "prompts.jsonl"
    table.write_text(json.dumps({"video": "ball.png", "foreground": "a coral ball"}) + "\n")
    clip = only(run(tmp_path, tmp_path / "in", prompts=str(table)))
    assert clip.prompts["foreground"] == "a coral ball"


def test_bad_stills_are_rejected_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "in/good.png", disc())
    write(tmp_path / "in/opaque.png", slope())
    empty = disc()
    empty[..., 3] = 0
    write(tmp_path / "in/empty.png", empty)
    (tmp_path / "in/broken.png").write_bytes(encode_png(disc())[:200])
    write(tmp_path / "in/alpha/alone.png", disc()[..., 3])
    write(tmp_path / "in/wide.png", disc())
    write(tmp_path / "in/wide.bg.png", slope(20, 90))
    write(tmp_path / "in/said.png", disc())
    (tmp_path / "in/said.json").write_text("{not json")
    corpus = run(tmp_path, tmp_path / "in")
    assert [row["origin"]["uri"] for row in corpus.rows(["origin"])] == ["good.png"]
    reasons = {row["uri"]: row["reason"] for row in corpus.rejected()}
    expected = {
        "opaque.png": "fully opaque",
        "empty.png": "fully transparent",
        "broken.png": "cannot be decoded",
        "alpha/alone.png": "no pair of picture and matte",
        "wide.png": "another aspect ratio",
        "said.png": "not valid JSON",
    }
    assert set(reasons) == set(expected)
    assert all(text in reasons[uri] for uri, text in expected.items())


def test_requests_that_cannot_work_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in/ball.png", disc())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="unknown layout"):
        run(tmp_path, tmp_path / "in", layout="nonsense")
    with pytest.raises(ValueError, match="no layered still"):
        run(tmp_path, tmp_path / "empty")
    with pytest.raises(ValueError, match="no such folder"):
        run(tmp_path, tmp_path / "nowhere")


def test_rows_do_not_depend_on_the_split_into_units(tmp_path: Path) -> None:
    for k in range(5):
        write(tmp_path / f"in/ball{k}.png", disc(colour=(40 * k, 90, 10)))
    options = PackOptions(inputs=[str(tmp_path / "in")], out="unused")
    plan, recipe = make_plan(options), make_recipe("image", {}, pack.FORMAT_VERSION)
    context = PackContext(plan, options, recipe.hash)

    def rows(size: int) -> list[Any]:
        units = plan_units(plan, size)
        outcomes = [pack_unit(unit.payload, context=context) for unit in units]
        return [row for outcome in outcomes for row in outcome.rows]

    assert len(rows(32)) == 5
    assert rows(32) == rows(2)


def test_filling_paints_the_object_over_and_leaves_the_rest() -> None:
    rgba, behind = disc(96), slope(96, 96)
    filled = fill_behind(composite(rgba[..., :3], rgba[..., 3], behind), rgba[..., 3])
    far = np.s_[:8]
    assert np.array_equal(filled[far], behind[far])
    assert np.abs(filled.astype(int) - behind).max() < 20


def test_made_up_backgrounds_keep_away_from_the_object() -> None:
    rng = np.random.default_rng(0)
    for colour in ((20, 20, 20), (230, 230, 230)):
        rgba = disc(colour=colour)
        made = made_up_background(rgba, "blurred", rng)
        assert abs(float(made.mean()) - colour[0]) > 40


def test_the_shared_cutouts_all_pack(tmp_path: Path, shared: Path) -> None:
    corpus = run(tmp_path, shared / "media/stills/lemur", size="120x160")
    assert [row["origin"]["uri"] for row in corpus.rows(["origin"])] == ["lemur_foreground.png"]
    assert [row["uri"] for row in corpus.rejected()] == ["beach.png"]


# Layouts of other sets. A disc moves over a slope; every layer is known.


def film(frames: int = 6, size: int = 48) -> tuple[U8, U8, U8]:
    """blended, alpha, background of a moving disc: uint8 [T, H, W, 3], [T, H, W], [T, H, W, 3]."""
    rgba = disc(size, soft=1.0)
    behind = np.stack([slope(size, size)] * frames)
    moved = np.stack([np.roll(rgba, 2 * t - frames, axis=1) for t in range(frames)])
    return composite(moved[..., :3], moved[..., 3], behind), moved[..., 3], behind


def frames_to(folder: Path, frames: U8) -> None:
    for t, frame in enumerate(frames):
        write(folder / f"{t:04d}.png", frame)


def check_film(corpus: Corpus, count: int = 6) -> Any:
    assert len(corpus) == 1, corpus.rejected()
    clip = corpus.clip(0)
    assert clip.num_frames == count
    assert np.array_equal(clip.alpha, film(count)[1])
    return clip


def test_layerflows_film_layout(tmp_path: Path) -> None:
    """CLIP/{bl,bg,fg,mask}/NNNN.png; the foreground was put on mid-grey and is not used."""
    blended, alpha, behind = film()
    root = tmp_path / "in/480p/ball"
    a = alpha[..., None] / 255
    on_grey = np.rint(np.array([210, 70, 40]) * a + 127 * (1 - a)).astype(np.uint8)
    for name, layer in (("bl", blended), ("mask", alpha), ("bg", behind), ("fg", on_grey)):
        frames_to(root / name, layer)
    entry = {"fg_prompt": "a ball", "bg_prompt": "a slope", "bl_prompt": "a ball on a slope"}
    (tmp_path / "in/meta_seg_test.json").write_text(json.dumps({"videos": {"ball": entry}}))
    corpus = run(tmp_path, tmp_path / "in", frames=6)
    clip = check_film(corpus)
    assert corpus.row(0, ["origin"])["origin"]["uri"] == "480p/ball/fg"
    assert (clip.kind, clip.background_kind) == ("pasted", "real")
    assert clip.prompts["blended"] == "a ball on a slope"
    solid = alpha == 255
    assert np.abs(clip.foreground[solid].astype(int) - (210, 70, 40)).mean() < 4


def test_davis_layout(tmp_path: Path) -> None:
    """JPEGImages + Annotations with a colour palette; the background is made from the film."""
    blended, alpha, behind = film(8)
    frames_to(tmp_path / "in/JPEGImages/480p/ball", blended)
    for t, matte in enumerate(alpha):
        labels = Image.fromarray((matte > 127).astype(np.uint8) * 2)
        labels.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        path = tmp_path / f"in/Annotations/480p/ball/{t:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        labels.save(path)
    corpus = run(tmp_path, tmp_path / "in", frames=8)
    assert len(corpus) == 1, corpus.rejected()
    clip = corpus.clip(0)
    assert clip.alpha_kind == "binary"
    assert np.array_equal(clip.alpha > 0, alpha > 127)
    assert clip.background_kind in ("filled", "inpainted")
    assert np.abs(clip.background.astype(int) - behind).mean() < 6


def test_video_matting_trees(tmp_path: Path) -> None:
    """fgr/CLIP + pha/CLIP (+ bgr/CLIP) of numbered frames."""
    _, alpha, behind = film()
    colour = np.broadcast_to(np.uint8([210, 70, 40]), behind.shape)
    for name, layer in (("fgr", colour), ("pha", alpha), ("bgr", behind)):
        frames_to(tmp_path / f"in/test/{name}/ball", np.ascontiguousarray(layer))
    clip = check_film(run(tmp_path, tmp_path / "in", frames=6))
    assert (clip.kind, clip.background_kind) == ("pasted", "real")
    frames_to(tmp_path / "two/fgr/ball", np.ascontiguousarray(colour))
    frames_to(tmp_path / "two/pha/ball", alpha)
    clip = check_film(run(tmp_path, tmp_path / "two", frames=6, out="b"))
    assert clip.background_kind == "filled"
    assert (clip.background == clip.background[0]).mean() > 0.5


def test_vidlayer_layout(tmp_path: Path) -> None:
    """A folder for each clip: metadata.json, full_video.mp4, background.mp4, mask.mp4."""
    blended, alpha, behind = film(8)
    blended = np.clip(blended.astype(int) + 12, 0, 255).astype(np.uint8)  # no exact composite
    root = tmp_path / "in/0001"
    root.mkdir(parents=True)
    grey = np.repeat(alpha[..., None], 3, 3)
    for name, layer in (("full_video", blended), ("background", behind), ("mask", grey)):
        (root / f"{name}.mp4").write_bytes(encode_color(layer, 8, crf=4))
    said = {"fg_prompt": "a ball", "caption": "a ball rolls", "full_video": "full_video.mp4"}
    (root / "metadata.json").write_text(json.dumps(said))
    corpus = run(tmp_path, tmp_path / "in", frames=8)
    assert len(corpus) == 1, corpus.rejected()
    clip = corpus.clip(0)
    assert (clip.kind, clip.background_kind) == ("mined", "inpainted")
    assert np.abs(clip.blended.astype(int) - blended).mean() < 4
    assert clip.prompts["foreground"] == "a ball"
    assert clip.prompts["blended"] == "a ball rolls"
    assert corpus.row(0, ["quality"])["quality"]["recomposition_error"] > 3


def test_long_films_become_several_clips(tmp_path: Path) -> None:
    _, alpha, behind = film(9)
    colour = np.broadcast_to(np.uint8([210, 70, 40]), behind.shape)
    for name, layer in (("fgr", colour), ("pha", alpha), ("bgr", behind)):
        frames_to(tmp_path / f"in/{name}/ball", np.ascontiguousarray(layer))
    corpus = run(tmp_path, tmp_path / "in", frames=4)
    assert len(corpus) == 2
    assert [row["origin"]["start"] for row in corpus.rows(["origin"])] == [0.0, 0.5]
    short = run(tmp_path, tmp_path / "in", frames=16, out="b")
    assert "has 9 frames; a clip needs 16" in short.rejected()[0]["reason"]


def test_layerflows_layered_images(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write(root / "fg/7.png", disc())
    write(root / "bg/7.png", slope())
    entry = {"images": "all/7.png", "images_bg": "bg/7.png", "images_fg": "fg/7.png"}
    entry |= {"prompt": "all of it", "prompt_bg": "a slope", "prompt_fg": "a ball"}
    (root / "meta.json").write_text(json.dumps({"7": entry}))
    clip = only(run(tmp_path, root))
    assert clip.prompts == {"foreground": "a ball", "background": "a slope", "blended": "all of it"}
    assert np.array_equal(clip.background[0], slope())
    entry["images_bg"] = "../../secret.png"
    (root / "meta.json").write_text(json.dumps({"7": entry}))
    with pytest.raises(ValueError, match="leads out of the folder"):
        run(tmp_path, root, out="b")


def test_documents_are_checked_before_they_are_parsed(tmp_path: Path) -> None:
    head = b"8BPS" + b"\0\1" + b"\0" * 6 + b"\0\3" + (60_000).to_bytes(4, "big") * 2 + b"\0\x08\0\3"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/huge.psd").write_bytes(head)
    (tmp_path / "in/text.psd").write_bytes(b"no document")
    corpus = run(tmp_path, tmp_path / "in")
    reasons = {row["uri"]: row["reason"] for row in corpus.rejected()}
    assert "over the limit" in reasons["huge.psd"]
    assert "no PSD" in reasons["text.psd"]


def test_real_documents_recompose_or_are_refused(tmp_path: Path, shared: Path) -> None:
    pytest.importorskip("psd_tools", reason="psd-tools is not installed")
    corpus = run(tmp_path, shared / "media/psd", layout="psd")
    made = {row["origin"]["uri"] for row in corpus.rows(["origin"])}
    assert made == {
        "background-red-opacity-80.psd",
        "group.psd",
        "hidden-layer.psd",
        "pixel-layer.psd",
    }
    reasons = {row["uri"]: row["reason"] for row in corpus.rejected()}
    assert "effects" in reasons["clipping-mask2.psd"]
    assert "HARD_LIGHT" in reasons["transparency-group.psd"]
    assert "another picture than the flattened one" in reasons["artboard.psd"]
    assert "fully opaque" in reasons["16bit5x5.psd"]
