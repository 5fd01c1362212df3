"""The card as a datasheet, the pictures of scores, and Croissant metadata of the real columns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layerflow.corpus.stats import read_batches
from layerflow.corpus.table import Corpus
from layerflow.media.cells import decode_png
from pipelines.publish.card import is_foreign, make_card
from pipelines.publish.croissant import make_croissant
from pipelines.publish.datasheet import PLACES, said_by_author
from pipelines.publish.files import PublishOptions
from pipelines.publish.job import run_publish
from pipelines.publish.pictures import BAR, LIMIT, score_picture
from pipelines.remove import Wanted, run_remove
from tests.support.corpora import make_rejected, make_rows, write_corpus

SECTIONS = [
    *("How to load", "Motivation", "Composition", "Columns", "Scores", "Collection", "Licences"),
    *("Uses", "Known limits", "Maintenance", "How to reproduce", "How it was made"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_rows(9)
    for index, row in enumerate(rows):
        row["quality"] |= {"matte_agreement": 0.5 + index / 20, "unseen_fraction": index / 10}
    return write_corpus(tmp_path_factory.mktemp("datasheet") / "corpus", rows, make_rejected())


@pytest.fixture(scope="module")
def folder(corpus: Path) -> Path:
    out = corpus.parent / "hub"
    options = PublishOptions("me/discs", with_rejected=True)
    run_publish(corpus, options, dry_run=out, workers=0, quiet=True)
    return out


def test_the_card_has_the_sections_of_a_datasheet(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert re.findall(r"^## (.+)$", card, re.MULTILINE) == SECTIONS
    assert card.count("**To be filled in by the author:**") == len(PLACES)


def test_sources_are_listed_with_licences_clips_and_hours(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    # rows 1 and 5 of video-1.mp4: a mined clip of 5 frames at 8 per second, and a still
    line = "| video-1.mp4 | CC0-1.0; not stated | - | 2 | 0.0002 | not stated |"
    assert line in card.replace("|  |", "| - |")
    licences = (folder / "LICENSE.md").read_text()
    assert "| licence | attribution | made of | clips | hours |" in licences
    assert "3 windows or inputs were looked at and not taken" in card


def test_limits_are_those_that_were_measured(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    agreement = np.percentile([0.5 + i / 20 for i in range(9)], (50, 5))
    unseen = np.percentile([i / 10 for i in range(9)], (50, 95))
    for (middle, bad), what in ((agreement, "below"), (unseen, "above")):
        assert f"median {middle:.3g}, worst twentieth {bad:.3g} and {what}, of 9 clips" in card
    assert "Levels by which the layers miss" not in card  # no clip has that score


def test_what_the_author_filled_in_stays_when_the_card_is_written_again(
    corpus: Path, folder: Path
) -> None:
    card = (folder / "README.md").read_text()
    told = "For *tests*.\n\nAnd with | bars."
    hint = f"**To be filled in by the author:** {PLACES['motivation']}."
    edited = card.replace(hint, told)
    assert said_by_author(card) == {} and said_by_author(edited) == {"motivation": told}
    facts = _facts(corpus)
    again = make_card(facts, edited)
    assert said_by_author(again) == {"motivation": told} and not is_foreign(again)
    assert make_card(facts, again) == again


def _facts(corpus: Path) -> Any:
    """The facts with which the files of a corpus are made."""
    import pipelines.publish.files as module

    held: list[Any] = []
    make = module.make_card
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "make_card", lambda facts, old: held.append(facts) or make(facts, old))
    try:
        out = corpus.parent / f"facts-{len(list(corpus.parent.iterdir()))}"
        run_publish(corpus, PublishOptions("me/discs"), dry_run=out, workers=0, quiet=True)
    finally:
        patch.undo()
    return held[0]


def test_removals_and_weights_are_told(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c", make_rows(9))
    info = json.loads((path / "corpus.json").read_text())
    options = {"matting": "onnx:u2net", "weights": "mine.onnx"}
    (path / "corpus.json").write_text(json.dumps(info | {"options": options}))
    wanted = Wanted(sources=["video-1.mp4"])
    run_remove(path, wanted, reason="they asked", workers=0, quiet=True)
    run_publish(path, PublishOptions("me/c"), dry_run=tmp_path / "hub", workers=0, quiet=True)
    card = (tmp_path / "hub/README.md").read_text()
    removed = re.search(r"\| (\d{4}-\d\d-\d\d) \| source \| 2 \|", card)
    assert removed and "video-1.mp4" not in card and "they asked" not in card
    sha256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
    assert f"| onnx:u2net | u2netp, known to the toolkit | {sha256} |" in card
    assert "| onnx:u2net | mine.onnx | not on record |" in card


def test_each_score_has_a_picture_with_the_limits_of_the_gate(corpus: Path) -> None:
    picture = decode_png(score_picture(read_batches(Corpus.open(corpus), ["quality"])))
    assert picture.shape == (2 * 130 + 14, 3 * 300 + 14, 3)  # four scores, three in a line
    per_panel = [picture[:144, x : x + 300] for x in (14, 314, 614)]
    assert all((panel == BAR).all(axis=2).any() for panel in per_panel)
    assert (picture == LIMIT).all(axis=2).any()
    rows = [{"quality": {"flicker": float(k // 90)}} for k in range(100)]
    bars = (decode_png(score_picture([pa.RecordBatch.from_pylist(rows)])) == BAR).all(axis=2)
    left, right = bars[:, :150].any(axis=1).sum(), bars[:, 150:300].any(axis=1).sum()
    assert left == 71 and right == 9  # 90 clips and 10: a bar is 70 pixels, the other a ninth
    nothing = [{"quality": {"flicker": None}}, {"quality": None}]
    schema = pa.schema([("quality", pa.struct([("flicker", pa.float64())]))])
    assert score_picture([pa.RecordBatch.from_pylist(nothing, schema=schema)]) == b""


def leaves(fields: list[dict[str, Any]]) -> dict[str, str]:
    """Column or path of every field that has a type, as Parquet names its leaves."""
    found = {}
    for field in fields:
        if "subField" in field:
            found |= leaves(field["subField"])
        else:
            source = field["source"]
            path = [part["jsonPath"] for part in source.get("transform", ())]
            found[".".join([source["extract"]["column"], *path])] = field["dataType"]
    return found


def test_croissant_describes_the_real_columns(folder: Path) -> None:
    croissant = json.loads((folder / "croissant.json").read_text())
    kinds = {"INT32": "cr:Int32", "FLOAT": "cr:Float32", "DOUBLE": "cr:Float64"}
    for records, files in zip(croissant["recordSet"], croissant["distribution"][1:], strict=True):
        (path,) = folder.glob(files["includes"])
        schema = pq.ParquetFile(path).schema
        wanted = {}
        for place in range(len(schema)):
            column = schema.column(place)
            name = column.path.replace(".list.element", "")
            text = "sc:VideoObject" if name.endswith(".bytes") else "sc:Text"
            wanted[name] = kinds.get(column.physical_type, text)
        wanted = {name: kind for name, kind in wanted.items() if not name.endswith(".path")}
        assert leaves(records["field"]) == wanted
        assert all(field["description"] for field in records["field"])


def test_stills_are_pictures_in_croissant(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "c", [row for row in make_rows(3) if row["kind"] == "image"])
    content = json.loads(make_croissant(_facts(path), "cc0-1.0"))
    fields = {field["name"]: field for field in content["recordSet"][0]["field"]}
    assert fields["alpha"]["dataType"] == "sc:ImageObject" and content["license"] == "cc0-1.0"


def test_croissant_validates_and_its_records_are_the_rows(corpus: Path, folder: Path) -> None:
    mlc = pytest.importorskip("mlcroissant", reason="pip install mlcroissant validates the file")
    dataset = mlc.Dataset(jsonld=folder / "croissant.json", mapping={"repo": folder})
    assert not dataset.metadata.ctx.issues.errors
    assert {one.uuid for one in dataset.metadata.record_sets} == {"default", "preview", "rejected"}
    rows = list(Corpus.open(corpus).rows())
    records = list(dataset.records("default"))
    assert [record["default/id"].decode() for record in records] == [row["id"] for row in rows]
    assert [record["default/fps"] for record in records] == [row["fps"] for row in rows]
    found = [record["default/origin"]["default/origin/uri"].decode() for record in records]
    assert found == [row["origin"]["uri"] for row in rows]
