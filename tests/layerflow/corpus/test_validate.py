"""What validate finds, what stats counts, what filter, merge and split make of a corpus."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from layerflow.cli.corpus import _length
from layerflow.cli.main import build_app
from layerflow.corpus.derive import filter_corpus, parse_where
from layerflow.corpus.row_check import check_row, uri_escapes
from layerflow.corpus.splits import assign, background_sources, foreground_sources, parse_fractions
from layerflow.corpus.table import SCHEMA, Corpus
from layerflow.corpus.validate import check_rows, stats, validate
from layerflow.media.cells import encode_alpha, encode_color, encode_png
from tests.support.corpora import make_rejected, make_rows, moving_clip, write_corpus


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return make_rows(12)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    return write_corpus(tmp_path_factory.mktemp("validate") / "corpus", rows, make_rejected())


def invoke(*arguments: object) -> Any:
    app = build_app()
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# --- validate ---------------------------------------------------------------------------------


def test_a_sound_corpus_has_no_problem(corpus: Path) -> None:
    assert validate(corpus) == []
    reports = list(check_rows(Corpus.open(corpus)))
    assert [r.kind for r in reports[:3]] == ["pasted", "mined", "image"]
    assert reports[2].encoded_rms == 0  # stills are stored without loss
    assert all(r.encoded_rms is not None and 0 < r.encoded_rms < 4 for r in reports[:2])


def corrupt(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update(changes)


def nested(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update({name: {**row[name], **changes}})


def flipped(row: dict[str, Any]) -> None:
    middle = len(row["blended"]) // 2
    row["blended"] = row["blended"][:middle] + row["blended"][:200]


CLIP = moving_clip(0)
BAD: list[tuple[str, str, Callable[[dict[str, Any]], None]]] = [
    ("id", "hex digits", corrupt(id="../../etc")),
    ("kind", "none of", corrupt(kind="video")),
    ("fps", "not positive", corrupt(fps=float("nan"))),
    ("num_frames", "GiB", corrupt(num_frames=2**30)),
    ("origin.uri", "absolute local path", nested("origin", uri="/home/me/a.mp4")),
    ("origin.uri", "no value", nested("origin", uri="")),
    ("origin.start", "not in order", nested("origin", start=3.0, end=1.0)),
    ("quality.flicker", "NaN", nested("quality", flicker=float("nan"))),
    ("alpha", "empty", corrupt(alpha=b"")),
    ("alpha", "cannot be read", corrupt(alpha=b"not a video at all" * 20)),
    ("alpha", "lossless", corrupt(alpha=encode_color(CLIP.blended, 8))),
    ("alpha", "3 frames, the row says 5", corrupt(alpha=encode_alpha(CLIP.alpha[:3], 8))),
    ("blended", "16x48", corrupt(blended=encode_color(CLIP.blended[:, :16], 8))),
    ("blended", "differs from the recomposed", corrupt(blended=encode_color(CLIP.background, 8))),
    ("", "", flipped),
    ("height", "no value", corrupt(height=None)),
]


@pytest.mark.parametrize(("field", "text", "change"), BAD, ids=[f"{b[0]}-{b[1]}" for b in BAD])
def test_bad_rows_are_found_and_named(
    rows: list[dict[str, Any]], field: str, text: str, change: Callable[[dict[str, Any]], None]
) -> None:
    row = dict(rows[0])
    change(row)
    problems = check_row(row, 7).problems
    assert problems and problems[0].row == 7
    assert text in problems[0].what and problems[0].field.startswith(field)
    assert problems[0].fix


def test_an_image_clip_is_exact(rows: list[dict[str, Any]]) -> None:
    row = dict(rows[2])
    off = moving_clip(2, "image").blended[0].astype(np.int16)
    off[10, 10] += np.where(off[10, 10] > 99, -3, 3)
    row["blended"] = encode_png(off.astype(np.uint8))
    assert "up to 3 levels" in check_row(row, 0).problems[0].what


@pytest.mark.parametrize(
    ("uri", "bad"),
    [
        ("a/b.mp4", False),
        ("a:b.mp4", False),
        ("~x.mp4", False),
        ("C:/a", True),
        ("https://host/a%2F..mp4", False),
        ("s3://bucket/x", False),
        ("/a", True),
        ("a/../../b", True),
        ("C:\\a", True),
        ("\\\\host\\a", True),
        ("file:///a", True),
        ("~/a", True),
    ],
)
def test_uris_stay_inside_their_root(uri: str, bad: bool) -> None:
    assert uri_escapes(uri) is bad


def test_folder_problems(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write_corpus(tmp_path / "c", rows[:4])
    shard = next(path.glob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1  # one flipped bit somewhere in a media cell
    shard.write_bytes(data)
    assert "checksum" in validate(path)[0].what
    shard.write_bytes(data[: len(data) // 2])
    assert validate(path)[0].row is None
    twice = write_corpus(tmp_path / "d", [rows[0], rows[1], rows[0]])
    assert "more than once" in validate(twice)[0].what
    (twice / "corpus.json").write_text('{"state": "running"}')
    assert any("running" in problem.what for problem in validate(twice))
    assert "no corpus" in validate(tmp_path)[0].what


def test_validate_command_contains_a_crash(
    tmp_path: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {**rows[3], "alpha": encode_alpha(moving_clip(3).alpha[:2], 8)}
    path = write_corpus(tmp_path / "c", [rows[0], bad, rows[1]])
    result = invoke("validate", path, "--workers", 2, "--quiet")
    assert result.exit_code == 1
    assert "row 1 (id 0000000000000003), alpha" in result.output and "Fix:" in result.output
    monkeypatch.setattr("layerflow.corpus.validate.row_checker", dies)
    reports = list(check_rows(Corpus.open(path), workers=2))
    assert [r.problems[0].what for r in reports] == ["the decoder crashed (status 7)"] * 3


def dies(path: Path) -> Callable[[bytes], bytes]:
    return lambda request: os._exit(7)


def test_validate_json(corpus: Path) -> None:
    result = invoke("validate", corpus, "--json", "--workers", 0)
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["rows"] == 12 and found["problems"] == [] and found["encoded_rms"]["image"] == 0


# --- stats ------------------------------------------------------------------------------------


def test_stats_counts(corpus: Path, rows: list[dict[str, Any]]) -> None:
    found = stats(Corpus.open(corpus))
    assert found["rows"] == 12 and found["kinds"]["mined"]["clips"] == 4
    assert found["frames"] == 8 * 5 + 4 and found["seconds"] == 8 * 5 / 8
    for layer in ("foreground", "alpha", "background", "blended"):
        assert found["bytes"][layer] == sum(len(row[layer]) for row in rows)
    assert found["sources"]["count"] == 4
    assert found["without_licence"] == 4 and found["licences"]["CC0-1.0"]["clips"] == 4
    flicker = found["scores"]["flicker"]
    assert flicker["count"] == 6 and flicker["max"] == pytest.approx(0.11)
    assert flicker["p50"] == pytest.approx(0.06) and "scale" not in found["scores"]
    assert found["rejected"]["reasons"]["gate: flicker over its bound"] == 2
    assert found["duplicates"]["rows"] == 0


def test_stats_finds_equal_media(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    copy = {**rows[1], "id": "f" * 16}
    found = stats(Corpus.open(write_corpus(tmp_path / "c", [*rows[:3], copy])))
    assert found["duplicates"] == {"rows": 1, "pairs": [[rows[1]["id"], "f" * 16]]}


def test_stats_of_nothing(tmp_path: Path) -> None:
    found = stats(Corpus.open(write_corpus(tmp_path / "c", [])))
    assert found["rows"] == 0 and found["bytes"]["all"] == 0
    assert invoke("stats", tmp_path / "c").exit_code == 0


def test_stats_command(corpus: Path) -> None:
    assert json.loads(invoke("stats", corpus, "--json").output)["rows"] == 12
    text = invoke("stats", corpus).output
    assert "CC-BY-4.0" in text and "not stated" in text and "flicker" in text
    assert "5.0 s" in text  # all clips; hours are for corpora that last hours
    lengths = [_length(seconds) for seconds in (0, 119, 750, 25_560, 7_200_000)]
    assert lengths == ["0.0 s", "119.0 s", "12.5 min", "7.1 h", "2,000.0 h"]


# --- filter, merge, split ---------------------------------------------------------------------


def test_filter_by_stored_scores(corpus: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    opened = Corpus.open(corpus)
    before = {p.name: p.read_bytes() for p in corpus.iterdir() if p.is_file()}
    made = filter_corpus(opened, tmp_path / "f", where=["flicker<0.08 and kind != image"])
    kept = list(Corpus.open(made.out).rows())
    wanted = [r for i, r in enumerate(rows) if i % 2 and i < 8 and r["kind"] != "image"]
    assert [r["id"] for r in kept] == [r["id"] for r in wanted]
    assert all(
        k[c] == w[c] for k, w in zip(kept, wanted, strict=True) for c in ("blended", "alpha")
    )
    assert made.rows + made.left_out == 12
    reasons = {r["reason"] for r in Corpus.open(made.out).rejected()}
    assert "there is no score flicker" in reasons
    assert validate(made.out) == []
    assert {p.name: p.read_bytes() for p in corpus.iterdir() if p.is_file()} == before


def test_a_finished_output_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    opened, out = Corpus.open(corpus), tmp_path / "f"
    first = filter_corpus(opened, out, kinds=["mined"])
    stamp = (out / "state.json").stat().st_mtime_ns
    assert filter_corpus(opened, out, kinds=["mined"]) == first
    assert (out / "state.json").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="not the result of this request"):
        filter_corpus(opened, out, kinds=["pasted"])


def test_keep_unknown(corpus: Path, tmp_path: Path) -> None:
    made = filter_corpus(
        Corpus.open(corpus), tmp_path / "f", where=["flicker<0.08"], keep_unknown=True
    )
    assert made.rows == 6 + 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flickr<1", "no score or column"),
        ("flicker<x", "no number"),
        ("flicker<inf", "not finite"),
        ("__import__('os').system('x')", "no condition"),
        ("kind<3", "only be compared"),
        ("", "no condition"),
    ],
)
def test_where_is_parsed_not_evaluated(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_where(text)


def test_where_reads_words_and_numbers() -> None:
    conditions = parse_where("licence='CC BY 4.0', seconds>=0.5 and num_frames = 16")
    assert [str(c) for c in conditions] == [
        "licence == CC BY 4.0",
        "seconds >= 0.5",
        "num_frames == 16",
    ]


def test_merge(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    one = write_corpus(tmp_path / "one", rows[:5], make_rejected())
    two = write_corpus(tmp_path / "two", rows[3:8])
    result = invoke("merge", one, two, "--out", tmp_path / "all")
    assert result.exit_code == 0, result.output
    merged = Corpus.open(tmp_path / "all")
    assert merged.ids() == [row["id"] for row in rows[:8]]
    assert len(merged.rejected()) == 3 + 2
    assert [info["name"] for info in merged.info["made_from"]] == ["one", "two"]
    assert validate(merged) == []


def test_split_keeps_foregrounds_together(
    corpus: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    result = invoke("split", corpus, "--out", tmp_path / "s", "--fractions", "train=0.75,test=0.25")
    assert result.exit_code == 0, result.output
    sources = {}
    for name in ("train", "test"):
        part = Corpus.open(tmp_path / "s" / name)
        sources[name] = {row["origin"]["uri"] for row in part.rows(["origin"])}
    assert sources["train"] and sources["test"] and not sources["train"] & sources["test"]
    assert "background sources are in more than one split" in result.output


def test_split_prefers_disjoint_backgrounds() -> None:
    def pasted(index: int, foreground: str, background: str) -> dict[str, Any]:
        where = {"uri": f"{foreground}.png", "sha256": None, "parents": [foreground, background]}
        return {"id": f"{index:016x}", "kind": "pasted", "origin": where}

    apart = [pasted(i, f"f{i % 10}", f"b{i % 10 // 2}") for i in range(100)]
    found = assign(apart, parse_fractions("train=0.8,test=0.2"))
    assert found.shared_backgrounds == 0 and found.names.count("test") == 20
    mixed = [pasted(i, f"f{i % 10}", f"b{i % 7}") for i in range(100)]
    found = assign(mixed, parse_fractions("train=0.8,test=0.2"))
    assert found.shared_backgrounds == 7 and found.names.count("test") == 20
    for foreground in range(10):
        assert len({found.names[i] for i in range(100) if i % 10 == foreground}) == 1
    two = pasted(0, "f", "b")
    two["origin"]["parents"] = ["person.mp4#00aa", "hat.png", "street.mp4"]
    assert {"file:person.mp4", "id:00aa", "file:hat.png"} < foreground_sources(two)
    assert "file:street.mp4" in background_sources(two) - foreground_sources(two)
    with pytest.raises(ValueError, match="1 foreground sources, too few"):
        assign([pasted(0, "f", "a"), pasted(1, "f", "b")], {"train": 0.5, "test": 0.5})


@pytest.mark.parametrize("text", ["train=0.5", "a=0.5,a=0.5", "../x=1", "a=x", "a=2,b=-1", ""])
def test_bad_fractions(text: str) -> None:
    with pytest.raises(ValueError, match=r"split|fraction"):
        parse_fractions(text)


def test_the_schema_of_rows_is_the_corpus_schema(rows: list[dict[str, Any]]) -> None:
    assert list(rows[0]) == SCHEMA.names
