"""Tables, sidecars and licences as other tools write them; numbered names; kinds of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from layerflow.clip import U8
from layerflow.corpus.changes.tombstones import normal_licence
from layerflow.corpus.table import Corpus
from manifests.mine import MineOptions
from manifests.pack import PackOptions
from pipelines.inputs.layouts import group_files, split_videos
from pipelines.inputs.listing import list_sources
from pipelines.inputs.numbering import even_runs, sequences
from pipelines.inputs.prompts import check_matches, read_prompt_table, sidecar
from pipelines.inputs.sources import list_foregrounds, rights_of
from pipelines.mine.plan import plan_units
from pipelines.pack.job import run_pack
from pipelines.publish.licences import (
    all_of,
    forbids,
    hub_licences,
    licence_in,
    licence_text,
)

ND = "CC-BY-NC-ND-4.0"
ND_URL = "https://creativecommons.org/licenses/by-nc-nd/4.0/"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (ND, ND),
        (["MIT", ND], f"MIT; {ND}"),
        ([None, [ND, ND]], ND),
        ({"name": ND, "url": ND_URL}, ND),
        ({"name": "CC-BY-4.0", "url": ND_URL}, f"CC-BY-4.0; {ND_URL}"),
        ([{"id": 3, "name": ND}, {"name": "MIT"}], f"{ND}; MIT"),
        (json.dumps(["MIT", {"name": ND}]), f"MIT; {ND}"),
        (b"CC-BY-ND-4.0", "CC-BY-ND-4.0"),
        ("[all rights reserved]", "[all rights reserved]"),
        *((nothing, None) for nothing in (None, "", "  ", [], {}, float("nan"), [None, ""])),
    ],
)
def test_a_licence_of_any_form_is_read(value: Any, text: str | None) -> None:
    assert licence_text(value) == text
    assert licence_in({"license": value, "other": 3}) == text


@pytest.mark.parametrize(
    "value", [4, True, b"\xff", {"id": 4}, {"name": ND, "free": True}, [[2.5]], "x" * 5000]
)
def test_a_licence_that_cannot_be_read_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="licence"):
        licence_text(value)


@pytest.mark.parametrize(
    "text",
    [ND, ND_URL, "cc_by_nd", "CC BY-NC-ND4.0", "MIT OR CC-BY-ND-4.0", "CC0-1.0 AND CC-BY-ND-3.0",
     f"MIT; {ND}", "Attribution-NoDerivs License", "ccbyncnd"],
)  # fmt: skip
def test_what_forbids_is_seen_in_every_spelling(text: str) -> None:
    assert forbids(text)


def test_parts_of_a_licence_hold_together() -> None:
    assert not any(forbids(text) for text in ("CC-BY-SA-4.0", "Android", "mind the hand", "MIT"))
    both = licence_in({"Licence": "CC-BY-4.0", "license": ND, "license_url": ND_URL})
    assert both == f"CC-BY-4.0; {ND}" and forbids(both)
    assert normal_licence("http://creativecommons.org/publicdomain/zero/1.0/deed.de") == "cc0-1.0"
    assert hub_licences("cc by 4.0; MIT") == {"cc-by-4.0", "mit"}
    assert all_of(["MIT", "MIT"]) == "MIT" and all_of([None, None]) is None
    assert all_of(["CC0-1.0", None]) == "CC0-1.0; not stated"  # no freer than what is unknown


def payloads(*inputs: Path, **more: Any) -> list[dict[str, Any]]:
    options = {"inputs": [str(path) for path in inputs], "out": "x", "size": "32x32", **more}
    said = MineOptions.model_validate(options)
    table = read_prompt_table(Path(said.prompts)) if said.prompts else None
    return [unit.payload for unit in plan_units(list_sources(said.inputs), said, table)]


def test_a_row_s_licence_is_never_replaced_by_a_freer_one(tmp_path: Path) -> None:
    rows = [
        {"video": "a.mp4", "licence": {"name": ND}},
        {"video": "b.mp4", "license": [ND]},
        {"video": "c.mp4", "licence": "", "foreground": ["a ball", "a disc"]},
        {"video": "d.mp4", "licence": 7},
        {"video": "e.mp4", "license": "MIT"},
    ]
    for row in rows:
        (tmp_path / str(row["video"])).touch()
    lines = [*map(json.dumps, rows), f'{{"video": "f.mp4", "license": "{ND}", "license": "MIT"}}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    (tmp_path / "e.json").write_text(json.dumps({"license": ND, "duration": 3}))
    (tmp_path / "f.mp4").touch()
    found = payloads(tmp_path / "t.jsonl", licence="CC-BY-4.0")
    assert [p.get("licence") for p in found] == [
        *(ND, ND, "CC-BY-4.0", None, f"MIT; {ND}", f"{ND}; MIT"),
    ]
    assert "row 4: the licence '7' cannot be read" in found[3]["problem"]
    assert found[2]["problem"] != found[3]["problem"]


def test_a_parquet_column_of_structs_is_read_and_others_are_not(tmp_path: Path) -> None:
    table = pa.table(
        {
            "video": ["a.mp4"],
            "license": [[{"name": ND, "url": None}]],
            "caption": ["a red ball"],
            "mp4": [b"x" * 100],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    (source,) = list_sources([str(tmp_path / "t.parquet")])
    assert source.row == {"blended": "a red ball", "licence": ND}


def disc(x: int, colour: tuple[int, int, int] = (200, 60, 40)) -> U8:
    y, xs = np.mgrid[:48, :64]
    alpha = np.clip(12.5 - np.hypot(y - 24, xs - x), 0, 1) * 255
    picture = np.dstack([np.full((48, 64, 3), colour), alpha]).astype(np.uint8)
    picture[::6, :, :3] //= 2
    return picture


def test_licences_of_packed_and_pasted_stills_come_from_their_sidecars(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "bg").mkdir(parents=True)
    for name in ("a", "b"):
        Image.fromarray(disc(20 if name == "a" else 40)).save(folder / f"{name}.png")
    Image.fromarray(disc(30)[..., :3]).save(folder / "bg" / "hill.png")
    (folder / "a.json").write_text(json.dumps({"caption": "a disc", "license": ["MIT"]}))
    (folder / "bg" / "hill.json").write_text(json.dumps({"licence": ND}))
    options = PackOptions(inputs=[str(folder)], out=str(tmp_path / "out"), licence="CC0-1.0")
    run_pack(options, workers=0, quiet=True)
    found = {r["origin"]["uri"]: r["origin"] for r in Corpus.open(tmp_path / "out").rows()}
    assert {uri: cell["licence"] for uri, cell in found.items()} == {
        "a.png": f"MIT; {ND}",  # its own and that of the background it was put on
        "b.png": f"CC0-1.0; {ND}",
    }
    sources = {s.uri: s for s in list_foregrounds([str(folder)], "off")}
    assert rights_of(sources["a.png"])["licence"] == "MIT"


def test_the_licence_column_of_a_packed_table_is_kept(tmp_path: Path) -> None:
    Image.fromarray(disc(20)).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    table = pa.table({"foreground": [data, data], "license": [[ND], None], "text": ["a disc"] * 2})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "t.parquet")
    options = PackOptions(inputs=[str(tmp_path / "in")], out=str(tmp_path / "out"), licence="MIT")
    run_pack(options, workers=0, quiet=True)
    rows = list(Corpus.open(tmp_path / "out").rows())
    assert [row["origin"]["licence"] for row in rows] == [ND, "MIT"]
    assert rows[0]["foreground_prompt"] == "a disc"


CSV = "video,foreground,background,blended\r\na.mp4,a ball,a wall,un été\r\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (CSV.encode("utf-16"), "UTF-16 .little-endian"),
        (CSV.encode("utf-16-be"), "UTF-16 .big-endian"),
        (CSV.encode("utf-16-le"), "UTF-16 .little-endian"),
        (CSV.encode("latin-1"), "not UTF-8 .byte 0xe9 in line 2"),
        (b"\x1f\x8b" + bytes(9), "gzip"),
        (CSV.replace("a ball", "a ball, red").encode(), "row 1 .line 2. has 5 cells for 4"),
        (CSV.replace("a ball", "a\0ball").encode(), "row 1 .line 2. holds a NUL"),
        (CSV.replace("a ball", '"a ball').encode(), "row 1 .line"),
        (CSV.replace("background", "foreground").encode(), "column 'foreground' is there twice"),
        (b"video,score\na.mp4,3\n", "known are .*caption"),
        (b"clip,blended\na.mp4,x\n", "row 1 has no video column"),
    ],
)
def test_a_csv_that_cannot_be_read_is_named_with_its_fault(
    data: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=rf"t\.csv: .*{words}"):
        read_prompt_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "text",
    ["{}", "\ufeff{}", "sep=;\r\n{;}", "{;}", "{\t}", "\ufeff{;}", "\r\n{}"],
)
def test_csv_of_other_tools_is_read(text: str, tmp_path: Path) -> None:
    for sign in ";\t,":
        text = text.replace(f"{{{sign}}}", CSV.replace(",", sign))
    (tmp_path / "t.csv").write_bytes(text.replace("{}", CSV).encode())
    assert read_prompt_table(tmp_path / "t.csv") == {
        "a.mp4": {"foreground": "a ball", "background": "a wall", "blended": "un été"}
    }


def test_long_and_missing_cells_and_foreign_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('file_name,text,score\n.\\a.mp4,"' + "long " * 40_000 + '"\n\nb.mp4\n')
    table = read_prompt_table(path)
    assert table["a.mp4"]["blended"].startswith("long long") and table["b.mp4"] == {}
    assert (
        check_matches(table, dict.fromkeys(("a.mp4", "b.mp4", "x/c.mp4"), ""), str(path))
        is not None
    )
    assert check_matches(table, {"v/a.mp4": ""}, str(path)) is None
    with pytest.raises(ValueError, match=r"none of its 2 rows names .* 'a\.mp4'.* 'z\.mp4'"):
        check_matches(table, {"z.mp4": ""}, str(path))


def test_json_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"video": "a.mp4", "blended": "a\u2028red\u0085 ball\\ud83d \\u0000x"}\r\n\n{"video": "b"}'
    )
    assert read_prompt_table(path) == {"a.mp4": {"blended": "a red ball? x"}, "b": {}}
    for line, words in (
        ("[1]", "row 2 .line 2. is no JSON object"),
        ("{", "row 2 .line 2. is not"),
    ):
        path.write_text('{"video": "a.mp4", "blended": "x"}\n' + line)
        with pytest.raises(ValueError, match=words):
            read_prompt_table(path)


def test_sidecars_of_other_tools_speak_layer_by_layer(tmp_path: Path) -> None:
    film, beside = tmp_path / "x.mp4", tmp_path / "x.json"
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa dog runs\r\n")
    for foreign in ([{"box": [1, 2]}], 7, None, {"key": "0", "foreground": 3}, {"caption": []}):
        beside.write_text(json.dumps(foreign))
        assert sidecar(film) == {"blended": "a dog runs"}
    beside.write_text(json.dumps({"fg_prompt": "a dog", "images": "x/1.png", "licence": ND}))
    assert sidecar(film) == {"foreground": "a dog", "blended": "a dog runs", "licence": ND}
    beside.write_text(json.dumps({"caption": ["a cat", "cats"], "prompt": "clip.mp4"}))
    assert sidecar(film)["blended"] == "a cat"
    (tmp_path / "x.txt").write_text("")
    beside.write_bytes(json.dumps({"blended": "x"}).encode("utf-16"))
    with pytest.raises(ValueError, match=r"x\.json: is UTF-16"):
        sidecar(film)


def test_every_kind_of_film_is_listed_and_the_rest_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["1.MTS", "2.m2ts", "3.wmv", "4.flv", "5.3gp", "6.mxf", "7.VOB", "8.qt", "9.y4m"]
    for name in (*names, "a.doc", "b.DOC", "c.xyz", "1.txt", "t.csv", ".hidden", "1.MASK.MKV"):
        (tmp_path / name).touch()
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    assert [s.uri for s in list_sources([str(tmp_path)])] == names
    said = capsys.readouterr().err
    assert "3 files of kinds that are not read (2 .doc, 1 .xyz)" in said
    assert "1 links that lead out of it or nowhere (gone.mp4)" in said


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["f_9", "f_10", "f_8"], {"f": (8, 9, 10)}),
        (["clip (2)", "clip (10)", "clip (1)"], {"clip": (1, 2, 10)}),
        (["shot.0002", "shot.0001"], {"shot": (1, 2)}),
        (["①", "③", "②"], {"": (1, 2, 3)}),
        (["-1", "1", "0", "-2"], {"": (-2, -1, 0, 1)}),
        (["a--1", "a-1", "a-0", "a--2"], {"a": (-2, -1, 0, 1)}),
        (["shot-1", "shot-2"], {"shot": (1, 2)}),
        (["s1_f1", "s2_f1", "s1_f2", "s2_f2"], {"s1_f": (1, 2), "s2_f": (1, 2)}),
        (["a1_t40", "a2_t80"], {"a_t40": (1, 2)}),
        (["x0001_left", "x0002_left"], {"x_left": (1, 2)}),
    ],
)
def test_numbered_names_are_sequences(names: list[str], found: dict[str, tuple[int, ...]]) -> None:
    told = sequences(names)
    assert {s.label: s.numbers for s in told} == found
    assert sorted(place for s in told for place in s.places) == list(range(len(names)))
    assert all(list(s.numbers) == sorted(s.numbers) for s in told)


def test_a_gap_ends_a_sequence() -> None:
    assert even_runs([1, 2, 3, 7, 8]) == [slice(0, 3), slice(3, 5)]
    assert even_runs([2, 4, 6]) == [slice(0, 3)]
    assert even_runs([1, 1, 2]) == [] and even_runs([4]) == []


def test_frames_of_any_name_are_films_and_cut_outs_are_not(tmp_path: Path) -> None:
    for folder in ("dancer", "two", "gap", "stock"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for t in range(9):
        Image.fromarray(disc(16 + 3 * t)).save(tmp_path / f"dancer/frame ({t + 4}).png")
        for shot in "ab":
            Image.fromarray(disc(16 + 3 * t)).save(tmp_path / f"two/{shot}.{t + 5:02d}.png")
        Image.fromarray(disc(16 + 3 * t)).save(tmp_path / f"gap/{t + 1}.png")
        Image.fromarray(disc(16 + 3 * t)).save(tmp_path / f"gap/{t + 21}.png")
        colour = tuple(int(c) for c in rng.integers(0, 255, 3))
        Image.fromarray(disc(32, colour)).save(tmp_path / f"stock/thing_{t:02d}.png")  # type: ignore[arg-type]
    films, stills = split_videos(group_files(tmp_path))
    assert [film.uri for film in films] == ["dancer", "gap/1", "gap/21", "two/a", "two/b"]
    assert [path.name for path in films[0].layers["file"]][:3] == [
        *("frame (4).png", "frame (5).png", "frame (6).png"),
    ]
    assert {still.uri.split("/")[0] for still in stills} == {"stock"} and len(stills) == 9
