"""Each object's own colour in pasted clips of several objects, also where others hide it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layerflow.corpus.columns import EXTENDED_SCHEMA, OBJECT, decode_objects
from layerflow.corpus.derive import merge_corpora
from layerflow.corpus.row_check import check_row
from layerflow.corpus.table import Corpus, decode_row
from layerflow.corpus.writer import write_table
from layerflow.media.cells import decode_color
from pipelines.vision.composite import Sprite, compose, prefilter
from pipelines.vision.path import Path as Track
from tests.support.pasted import backdrops, disc, run, stills


def test_colours_of_single_objects_over_the_background_are_the_scene(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    more: dict[str, Any] = {"count": 2, "objects": (3, 3), "area": (0.05, 0.15), "crf": 1}
    corpus = run(tmp_path, fg, bg, placement="free", min_visible=0.1, min_psnr=0, **more)
    for row in corpus.rows():
        clip, made = decode_row(row), decode_color(row["background"]).astype(float)
        for item in decode_objects(row):
            assert item.colour is not None
            share = item.amodal[..., None] / 255
            made = share * item.colour + (1 - share) * made
        assert np.abs(made - clip.blended).max() < 12 and np.abs(made - clip.blended).mean() < 1
        hidden = [item.amodal.astype(int) - item.visible > 100 for item in decode_objects(row)]
        assert any(where.any() for where in hidden)  # a disc stands behind another one
    assert check_row(row, 0).problems == ()
    wrong = [one | {"colour": row["background"]} for one in row["objects"]]
    (problem,) = check_row(row | {"objects": wrong}, 0).problems
    assert "over the background miss blended" in problem.what


def test_hidden_colour_is_the_object_s_own_and_can_be_left_out(tmp_path: Path) -> None:
    """Two sheets, one behind the other: of the hindmost the other one hides a part."""
    ink = [np.full((20, 20, 4), 255, np.uint8) for _ in range(2)]
    ink[0][..., :3], ink[1][..., :3] = (200, 40, 30), (30, 60, 210)
    tracks = [Track(np.tile([x, 24.0, 1.0, 0.0], (2, 1)), 0.0, False, "free") for x in (28.0, 36.0)]
    sprites = [Sprite([prefilter(i, 1.0)], p, (20, 20)) for i, p in zip(ink, tracks, strict=True)]
    own, colours = (
        [np.zeros((2, 48, 64, *last), np.uint8) for _ in sprites] for last in ((), (3,))
    )
    ground = np.full((2, 48, 64, 3), 120, np.uint8)
    first = compose(sprites, ground, own=own, colours=colours)
    assert colours[0][0, 24, 34].tolist() == [200, 40, 30]  # behind the second one
    assert first[0][0, 24, 34].tolist() == [30, 60, 210]
    alone = [np.zeros_like(a) for a in own]
    plain = compose(sprites, ground, own=alone)
    pairs = zip((*first[:3], *own), (*plain[:3], *alone), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)  # the rest is as without colours
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    more: dict[str, Any] = {"count": 1, "objects": (2, 2), "object_colours": False}
    (row,) = run(tmp_path, fg, bg, **more).rows()
    assert [item["colour"] for item in row["objects"]] == [None, None]
    assert decode_objects(row)[0].colour is None and check_row(row, 0).problems == ()


def test_objects_of_older_corpora_have_no_colour_and_join_newer_ones(tmp_path: Path) -> None:
    fg, bg = stills(tmp_path / "fg"), backdrops(tmp_path / "bg")
    new = run(tmp_path, fg, bg, count=1, objects=(2, 2), area=(0.05, 0.1))
    at = EXTENDED_SCHEMA.get_field_index("objects")
    fewer = pa.list_(pa.struct([field for field in OBJECT if field.name != "colour"]))
    schema = EXTENDED_SCHEMA.set(at, EXTENDED_SCHEMA.field(at).with_type(fewer))
    row = new.row(0) | {"id": "0" * 16}
    for item in row["objects"]:
        del item["colour"]
    write_table(tmp_path / "old", [row], schema)
    old = Corpus.open(tmp_path / "old")
    assert check_row(old.row(0), 0).problems == ()
    merge_corpora([old, new], tmp_path / "merged")
    rows = list(Corpus.open(tmp_path / "merged").rows())
    assert rows[0]["objects"][0]["colour"] is None
    assert rows[1]["objects"][0]["colour"] == new.row(0)["objects"][0]["colour"]


def test_before_encoding_colours_miss_the_scene_by_rounding_alone() -> None:
    """Soft discs over one another, with grain: each object rounds its colour and its alpha."""
    rng = np.random.default_rng(5)
    tracks = [Track(np.tile([x, 24.0, 0.6, 0.0], (3, 1)), 0.0, False, "free") for x in (20, 30, 38)]
    inks = [disc(colour=tuple(rng.integers(30, 220, 3))) for _ in tracks]
    sprites = [Sprite([prefilter(i, 0.6)], p, (80, 80)) for i, p in zip(inks, tracks, strict=True)]
    own, colours = (
        [np.zeros((3, 48, 64, *last), np.uint8) for _ in sprites] for last in ((), (3,))
    )
    ground = rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    grain = rng.normal(0, 3, (3, 48, 64)).astype(np.float32)
    blended = compose(sprites, ground, own=own, colours=colours, grain=grain)[2]
    made = ground.astype(float)
    for colour, alpha in zip(colours, own, strict=True):
        made = alpha[..., None] / 255 * colour + (1 - alpha[..., None] / 255) * made
    assert np.abs(made - blended).max() <= 0.5 * len(own) + 2
