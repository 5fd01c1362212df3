"""Licences wherever they may stand, in every spelling, through mine, pack and paste."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from layerflow.clip import U8
from layerflow.corpus.stats import general_reason
from layerflow.corpus.table import Corpus
from layerflow.locations import one_line, root_of
from manifests.mine import MineOptions
from manifests.pack import PackOptions
from pipelines.inputs.listing import list_sources, matte_beside
from pipelines.inputs.metadata import said_of
from pipelines.inputs.prompts import merged, read_prompt_table, sidecar
from pipelines.inputs.sources import list_foregrounds, prompt_of, rights_of
from pipelines.mine.plan import plan_units
from pipelines.pack.describe import clip_rights
from pipelines.pack.job import run_pack
from pipelines.pack.plan import PackPlan, make_plan
from pipelines.publish.licences import (
    forbids,
    is_licence_column,
    is_unsaid,
    licence_in,
    licence_text,
    review,
)

ND = "CC-BY-ND-4.0"
FREE = {"licence": "CC0-1.0", "attribution": None}


def disc(x: int = 20) -> U8:
    y, xs = np.mgrid[:32, :40]
    alpha = np.clip(8.5 - np.hypot(y - 16, xs - x), 0, 1) * 255
    return np.dstack([np.full((32, 40, 3), (200, 60, 40)), alpha]).astype(np.uint8)


def still(path: Path, x: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(disc(x)).save(path)
    return path


def said_by_mine(*inputs: str, **more: Any) -> dict[str, dict[str, Any]]:
    options = {"inputs": list(inputs), "out": "x", "size": "32x32", "licence": "CC0-1.0", **more}
    said = MineOptions.model_validate(options)
    table = read_prompt_table(Path(said.prompts)) if said.prompts else None
    units = plan_units(list_sources(said.inputs), said, table)
    return {unit.payload["uri"].rpartition("/")[2]: unit.payload for unit in units}


def packed(folder: Path, **more: Any) -> tuple[PackPlan, dict[str, str | None]]:
    """A plan of pack, and the licence of everything in it by uri."""
    plan = make_plan(PackOptions(inputs=[str(folder)], out="x", **more))
    found = [*plan.stills, *plan.videos]
    return plan, {e.uri: clip_rights([e], plan.said, FREE)["licence"] for e in found}


@pytest.mark.parametrize(
    "text",
    ["\uff23\uff23 \uff22\uff39-\uff2e\uff24", "CC BY\u2013ND", "CC-BY-N\u200bD",
     "AllRightsReserved", "Tous droits réservés", "Alle Rechte vorbehalten.", "do not share",
     "Not for redistribution", "Redistribution is strictly prohibited", "without derivatives",
     "can't be redistributed", "http://rightsstatements.org/vocab/InC/1.0/", "Rights-managed",
     "must not be distributed"],
)  # fmt: skip
def test_words_that_forbid_are_known_in_many_forms(text: str) -> None:
    assert forbids(text)


@pytest.mark.parametrize(
    "text",
    ["CC BY-NC-SA 4.0", "Attribution Non Commercial Share Alike", "CC BY 4.0, 2nd version",
     "Redistribution and use in source and binary forms, with or without modification, are",
     "no restrictions on redistribution", "free to share and not to pay", "distributed freely"],
)  # fmt: skip
def test_words_of_free_licences_forbid_nothing(text: str) -> None:
    assert not forbids(text)


def test_columns_of_a_licence_have_many_names() -> None:
    names = ["License", "video_license", "licenseUrl", "LicenseShortName", "dc:rights", "copyright"]
    names += ["usage_terms", "SPDX-License-Identifier", "\ufefflicense", "license(s)", "licensing"]
    assert all(map(is_licence_column, names))
    others = ["license_plate", "licensee", "is_licensed", "right", "caption", "drivers_license"]
    assert not any(map(is_licence_column, others))
    assert licence_in({"license_checked": True, "image_license": ND}) == ND
    deep = {"info": [{"license": ND}], "license": "MIT"}
    assert licence_in(deep) == f"MIT; {ND}" and licence_in(deep, deep=False) == "MIT"
    for broken in ("C\0C", b"C\0C\0", {"license": {"license": 3}}):
        with pytest.raises(ValueError, match="licence"):
            licence_text(broken)


def test_a_licence_that_is_not_known_counts_as_not_stated() -> None:
    assert all(map(is_unsaid, ("Unknown", "n/a", "CC0-1.0; not stated", "None.")))
    rows = [{"origin": {"licence": text, "uri": "a"}} for text in ("unknown", "MIT", None)]
    assert review(rows).unstated == 2


@pytest.mark.parametrize(
    "name", ["clip.JSON", "clip.Json", "clip.info.json", "clip.mp4.json", "clip.json"]
)
def test_a_sidecar_may_be_named_as_other_tools_do(name: str, tmp_path: Path) -> None:
    content = {"License": ND, "Caption": "a dog", "attribution": {"name": "J", "url": "u"}}
    (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "clip.txt").write_bytes(b"")
    said = {"licence": ND, "blended": "a dog", "attribution": "J; u"}
    assert sidecar(tmp_path / "clip.mp4") == said
    (tmp_path / "clip.mp4").touch()
    assert said_by_mine(f"file://{tmp_path}")["clip.mp4"]["licence"] == ND


def test_an_empty_sidecar_says_nothing(tmp_path: Path) -> None:
    for name in ("a.json", "b.txt", "c.TXT"):
        (tmp_path / name).write_bytes(b"")
        assert sidecar(tmp_path / f"{name[0]}.mp4") == {}


def test_a_table_names_files_by_composed_letters_blanks_and_any_slash(tmp_path: Path) -> None:
    names = [unicodedata.normalize("NFD", "café.mp4"), " lead.mp4", "back\\slash.mp4", "a:b.mp4"]
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    rows = [{"video": unicodedata.normalize("NFC", n), "text": "x", "rights": ND} for n in names]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = said_by_mine(str(folder), prompts=str(tmp_path / "t.jsonl"))
    assert {name: found[name]["licence"] for name in names} == dict.fromkeys(names, ND)


def test_what_a_folder_states_holds_for_all_in_it(tmp_path: Path) -> None:
    still(tmp_path / "deep" / "a.png")
    (tmp_path / "deep" / "a.mp4").touch()
    (tmp_path / "metadata.json").write_text(json.dumps({"license": ND, "b": {"license": "no"}}))
    (tmp_path / "deep" / "meta.json").write_text(json.dumps({"rights": "MIT"}))
    assert said_by_mine(str(tmp_path))["a.mp4"]["licence"] == f"MIT; {ND}"
    (tmp_path / "deep" / "a.mp4").unlink()
    assert packed(tmp_path)[1] == {"deep/a.png": f"MIT; {ND}"}
    (source,) = list_foregrounds([str(tmp_path)], "off")
    assert rights_of(source)["licence"] == f"MIT; {ND}"
    for foreign, problem in (("{1}\n{2}", None), ('{"License": ', "metadata.json: not valid JSON")):
        (tmp_path / "metadata.json").write_text(foreign)
        (tmp_path / "x.mp4").touch()
        found = said_by_mine(str(tmp_path))["x.mp4"]
        assert (problem is None) == (found.get("licence") == "CC0-1.0")
        assert problem is None or problem in found["problem"]


def test_index_and_table_both_hold_for_pack_and_the_index_for_paste(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    still(folder / "i.png")
    entry = {"images_fg": "i.png", "prompt_fg": "a disc", "license": ND}
    (folder / "meta.json").write_text(json.dumps({"7": entry}))
    for key in ("i.png", "i", "7"):
        (tmp_path / "t.csv").write_text(f"video,foreground,license\n{key},one,MIT\n")
        plan, held = packed(folder, prompts=str(tmp_path / "t.csv"))
        assert held == {"i.png": f"MIT; {ND}"} and plan.said["i.png"]["foreground"] == "one"
    (source,) = list_foregrounds([str(folder)], "off")
    assert rights_of(source)["licence"] == ND and prompt_of(source, "foreground") == "a disc"


def test_frames_in_a_folder_have_the_sidecars_of_the_folder_and_of_every_frame(
    tmp_path: Path,
) -> None:
    for number in range(8):
        still(tmp_path / "bird" / f"{number:04d}.png", 16 + number)
    (tmp_path / "bird.json").write_text(json.dumps({"license": ND}))
    (tmp_path / "bird" / "0005.json").write_text(json.dumps({"license": "MIT"}))
    assert packed(tmp_path)[1] == {"bird": f"MIT; {ND}"}
    (source,) = list_foregrounds([str(tmp_path)], "off")
    assert rights_of(source)["licence"] == f"MIT; {ND}"


def test_a_pair_has_the_sidecar_of_its_common_name_in_paste_too(tmp_path: Path) -> None:
    picture = disc()
    Image.fromarray(picture[..., :3]).save(tmp_path / "x_fg.png")
    Image.fromarray(picture[..., 3]).save(tmp_path / "x_alpha.png")
    (tmp_path / "x.json").write_text(json.dumps({"license": ND}))
    (source,) = list_foregrounds([str(tmp_path)], "off")
    assert rights_of(source)["licence"] == ND
    files = [tmp_path / "x_fg.png", tmp_path / "x_alpha.png"]
    assert said_of("x_fg.png", "x", files) == {"licence": ND}


def test_a_packed_table_states_rights_in_structs_and_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    cell = still(tmp_path / "x.png").read_bytes()
    folder.mkdir()
    columns = {"foreground": [cell] * 2, "meta": [{"info": {"license": ND}}, {"info": None}]}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    (folder / "dataset_info.json").write_text(json.dumps({"license": "MIT", "features": {}}))
    options = PackOptions(inputs=[str(folder)], out=str(tmp_path / "out"), licence="CC0-1.0")
    run_pack(options, workers=0, quiet=True)
    rows = Corpus.open(tmp_path / "out").rows(["origin"])
    assert [row["origin"]["licence"] for row in rows] == [f"{ND}; MIT", "MIT"]
    with pytest.raises(ValueError, match="say this themselves"):
        (tmp_path / "t.csv").write_text("video,text\nx,y\n")
        packed(folder, prompts=str(tmp_path / "t.csv"))


def test_a_matte_is_found_in_any_usual_case(tmp_path: Path) -> None:
    for name in ("a.Mp4", "a.MASK.mkv", "b.mp4", "b.Alpha.MOV"):
        (tmp_path / name).touch()
    assert [source.uri for source in list_sources([str(tmp_path)])] == ["a.Mp4", "b.mp4"]
    assert matte_beside(tmp_path / "a.Mp4") == tmp_path / "a.MASK.mkv"
    assert matte_beside(tmp_path / "b.mp4") == tmp_path / "b.Alpha.MOV"


def test_the_root_of_a_sequence_is_the_folder_that_its_uri_is_below(tmp_path: Path) -> None:
    frame = tmp_path / "shots" / "take_0001.png"
    assert root_of(frame, "shots/take") == root_of(frame, "shots/take_0001.png") == tmp_path
    assert root_of(frame, "other/take") is None
    assert merged({"blended": "a", "licence": ND}, {"blended": "b", "licence": "MIT"}) == {
        "blended": "a",
        "licence": f"{ND}; MIT",
    }


def test_a_row_names_a_file_whose_letters_are_composed_otherwise(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "café.mp4")
    (tmp_path / name).touch()
    rows = [unicodedata.normalize("NFC", name), f" {name} ", name]
    (tmp_path / "t.csv").write_text("\n".join(["video", *rows, "x" * 400 + ".mp4"]))
    found = list_sources([str(tmp_path / "t.csv")])
    assert [source.uri for source in found] == [name, "x" * 400 + ".mp4"]


def test_names_on_the_screen_are_one_line_each() -> None:
    assert one_line("a\nb\u202ec\x1b[1m\u2028d") == "a b c [1m d"
    assert general_reason("read", "x is UTF-16, 640x480, -3.5 of 8") == (
        "read: x is UTF-16, NxN, N of N"
    )
