"""Publishing into a folder: rows that ``datasets`` opens unchanged, a preview, a card, licences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from layerflow.cli.main import build_app
from layerflow.clip import LAYERS
from layerflow.corpus.published import PublishedCorpus, local_row
from layerflow.corpus.table import SCHEMA, Corpus, decode_row
from layerflow.media.cells import decode_color, decode_png
from pipelines.publish.card import plain, read_metadata
from pipelines.publish.files import PublishOptions
from pipelines.publish.job import run_publish
from pipelines.publish.layout import Sent
from pipelines.publish.licences import forbids, hub_licence, review
from pipelines.publish.tables import shard_limit, shard_rows
from tests.support.corpora import make_rejected, make_rows, write_corpus

HOSTILE = "</script> ``` | a\n---\nx: y"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_rows(12)
    rows[4] |= {"blended_prompt": HOSTILE}
    rows[4]["origin"] |= {"uri": f"a/{HOSTILE}.mp4", "attribution": HOSTILE}
    return write_corpus(tmp_path_factory.mktemp("publish") / "corpus", rows, make_rejected())


@pytest.fixture(scope="module")
def folder(corpus: Path) -> Path:
    out = corpus.parent / "hub"
    options = PublishOptions("me/discs", with_rejected=True)
    lines = run_publish(corpus, options, dry_run=out, workers=0, quiet=True)
    assert "12 clips" in lines[0] and "4 clips have no licence on record" in lines[1]
    return out


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """datasets.load_dataset with a cache of its own."""
    import datasets

    def opened(*arguments: Any, **options: Any) -> Any:
        return datasets.load_dataset(*arguments, cache_dir=str(tmp_path / "cache"), **options)

    return opened


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_gives_the_rows_of_the_corpus(
    corpus: Path, folder: Path, load: Any, streaming: bool
) -> None:
    import datasets

    found = load(str(folder), split="train", streaming=streaming)
    assert list(found.features) == SCHEMA.names
    assert all(found.features[layer] == datasets.Video(decode=False) for layer in LAYERS)
    local = list(Corpus.open(corpus).rows())
    assert [local_row(row) for row in found] == local
    clip = decode_row(local_row(next(iter(found))))
    assert np.array_equal(clip.alpha, Corpus.open(corpus).clip(0).alpha)


def test_columns_are_read_without_media(corpus: Path, folder: Path, load: Any) -> None:
    few = load(str(folder), split="train", columns=["id", "quality"])
    assert few.column_names == ["id", "quality"] and few["id"] == Corpus.open(corpus).ids()


def test_published_folder_is_read_as_a_corpus(corpus: Path, folder: Path) -> None:
    found, local = PublishedCorpus.open(folder), Corpus.open(corpus)
    assert len(found) == 12 and found.ids() == local.ids()
    assert list(found.rows()) == list(local.rows()) and found.row(9) == local.row(9)
    assert found.row(3, ["id"]) == {"id": local.ids()[3]}
    with pytest.raises(IndexError):
        found.row(12)
    with pytest.raises(ValueError, match="holds no data"):
        PublishedCorpus.open(corpus)


def test_parquet_is_made_for_readers_over_a_network(folder: Path) -> None:
    file = pq.ParquetFile(folder / "data" / "train-00000.parquet")
    assert file.metadata.num_row_groups == 2 and file.metadata.row_group(0).num_rows == 8
    for index in range(file.metadata.num_columns):
        column = file.metadata.row_group(0).column(index)
        media = column.path_in_schema.endswith(".bytes")
        assert column.compression == ("UNCOMPRESSED" if media else "ZSTD")
        assert column.has_offset_index  # the page index
        assert column.is_stats_set is not media
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["alpha"] == {"decode": False, "_type": "Video"}


def test_equal_corpora_give_equal_files(corpus: Path, folder: Path, tmp_path: Path) -> None:
    options = PublishOptions("me/discs", with_rejected=True)
    run_publish(corpus, options, dry_run=tmp_path / "again", workers=0, quiet=True)
    for path in sorted(p.relative_to(folder) for p in folder.rglob("*.*")):
        assert (tmp_path / "again" / path).read_bytes() == (folder / path).read_bytes(), path


def test_preview_is_playable_and_has_the_scores(folder: Path, load: Any) -> None:
    rows = load(str(folder), "preview", split="train")
    assert len(rows) == 12
    row = rows[1]
    assert row["flicker"] == pytest.approx(0.01) and row["foreground_prompt"] == "disc 1"
    media = row["preview"]["bytes"]
    assert row["preview"]["path"].endswith(".mp4")
    assert media.find(b"moov") < media.find(b"mdat")  # the index in front: playing starts at once
    assert decode_color(media).shape == (5, 64, 96, 3)
    assert len(decode_color(rows[2]["preview"]["bytes"])) == 8  # a still stands for a second


def test_rejected_rows_are_published_on_request(folder: Path, load: Any) -> None:
    rejected = load(str(folder), "rejected", split="train")
    assert [row["reason"] for row in rejected] == [row["reason"] for row in make_rejected()]


def test_card_is_valid_and_says_what_is_there(folder: Path) -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(folder / "README.md", repo_type="dataset")
    data = card.data.to_dict()
    assert [c["config_name"] for c in data["configs"]] == ["default", "preview", "rejected"]
    assert data["license"] == "other" and data["license_link"] == "LICENSE.md"
    assert data["size_categories"] == ["n<1K"]
    infos = {info["config_name"]: info for info in data["dataset_info"]}
    assert infos["default"]["splits"][0]["num_examples"] == 12
    files = (folder / "data").glob("*.parquet")
    assert infos["default"]["download_size"] == sum(file.stat().st_size for file in files)
    text = card.text
    assert "4 clips have no licence on record" in text and "gate: flicker over its bound" in text
    assert "gate: 'off'" in text  # the recorded options
    assert text.count("```") == 6 and "</script>" not in text
    assert HOSTILE not in (folder / "LICENSE.md").read_text()
    assert decode_png((folder / "contact_sheet.png").read_bytes()).shape[2] == 3


def test_splits_share_no_foreground(corpus: Path, tmp_path: Path, load: Any) -> None:
    options = PublishOptions("me/discs", split="train=0.75,test=0.25")
    run_publish(corpus, options, dry_run=tmp_path / "hub", workers=0, quiet=True)
    found = load(str(tmp_path / "hub"))
    assert set(found) == {"train", "test"} and len(found["train"]) + len(found["test"]) == 12
    sources = [{row["sha256"] for row in found[split]["origin"]} for split in ("train", "test")]
    assert sources[0] and sources[1] and not sources[0] & sources[1]
    assert "Background sources in more than one split" in (tmp_path / "hub/README.md").read_text()


def test_shards_are_cut_by_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Any
) -> None:
    monkeypatch.setattr("pipelines.publish.files.SHARD_BYTES", 20_000)
    run_publish(corpus, PublishOptions("me/discs"), dry_run=tmp_path / "hub", workers=0, quiet=True)
    names = sorted(p.name for p in (tmp_path / "hub" / "data").iterdir())
    assert len(names) > 2 and names[0] == "train-00000.parquet"
    assert load(str(tmp_path / "hub"), split="train")["id"] == Corpus.open(corpus).ids()
    assert shard_rows(np.asarray([5, 5, 5, 20, 1]), 10) == [2, 1, 1, 1]
    assert shard_rows(np.asarray([], np.int64)) == [0]
    mebi = 1 << 20
    assert [shard_limit(n * mebi) // mebi for n in (1, 400, 4000)] == [32, 100, 300]
    assert shard_limit(400 * mebi, 20_000) == 20_000


def test_stills_alone_are_images(tmp_path: Path, load: Any) -> None:
    import datasets

    path = write_corpus(tmp_path / "c", [row for row in make_rows(9) if row["kind"] == "image"])
    run_publish(path, PublishOptions("me/stills"), dry_run=tmp_path / "hub", workers=0, quiet=True)
    found = load(str(tmp_path / "hub"), split="train")
    assert found.features["blended"] == datasets.Image(decode=False)
    assert [local_row(row) for row in found] == list(Corpus.open(path).rows())


def test_an_interrupted_run_is_continued(
    corpus: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PublishOptions("me/discs", with_rejected=True)

    def stop(*arguments: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipelines.publish.files.make_sheet", stop)
        run_publish(corpus, options, dry_run=tmp_path / "hub", workers=0, quiet=True)
    assert not (tmp_path / "hub").exists()
    done = next(tmp_path.glob(".hub.*.building")) / "data" / "train-00000.parquet"
    stamp = done.stat().st_mtime_ns
    run_publish(corpus, options, dry_run=tmp_path / "hub", workers=0, quiet=True)
    assert (tmp_path / "hub/data" / done.name).stat().st_mtime_ns == stamp
    assert (tmp_path / "hub/README.md").read_bytes() == (folder / "README.md").read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# --- licences and requests --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "no"),
    [
        ("CC-BY-4.0", False),
        ("cc by-nc 4.0", False),
        ("Apache-2.0", False),
        ("All rights reserved", True),
        ("CC-BY-ND-4.0", True),
        ("CC BY-NC-ND 4.0", True),
        ("Proprietary, internal use", True),
        ("may not be redistributed", True),
        ("no redistribution", True),
        ("Understandable licence", False),
    ],
)
def test_what_forbids_redistribution(text: str, no: bool) -> None:
    assert forbids(text) is no


def test_hub_licences() -> None:
    assert hub_licence("CC BY 4.0") == "cc-by-4.0" and hub_licence("CC0") == "cc0-1.0"
    assert hub_licence("my own") is None


def test_a_forbidding_licence_stops_unless_private_and_acknowledged(tmp_path: Path) -> None:
    rows = make_rows(3)
    rows[1]["origin"] |= {"licence": "All rights reserved"}
    path = write_corpus(tmp_path / "c", rows)
    report = review(Corpus.open(path).rows(["origin"]))
    assert report.forbidding == {"All rights reserved": 1} and report.unstated == 1
    for options in (
        PublishOptions("me/x"),
        PublishOptions("me/x", private=False, acknowledge_licences=True),
    ):
        with pytest.raises(ValueError, match="1 clips have a licence that forbids redistribution"):
            run_publish(path, options, dry_run=tmp_path / "hub", workers=0, quiet=True)
    assert not (tmp_path / "hub").exists()
    options = PublishOptions("me/x", acknowledge_licences=True)
    run_publish(path, options, dry_run=tmp_path / "hub", workers=0, quiet=True)
    assert "acknowledged" in (tmp_path / "hub" / "README.md").read_text()


@pytest.mark.parametrize("name", ["x", "../x/y", "a/b/c", "a/..", "-a/b", "a b/c", "a/b--c"])
def test_bad_repository_ids(name: str) -> None:
    with pytest.raises(ValueError, match="repository id"):
        PublishOptions(name)


def test_bad_requests(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="configuration"):
        PublishOptions("a/b", config="preview")
    with pytest.raises(ValueError, match="exists"):
        run_publish(corpus, PublishOptions("a/b"), dry_run=corpus, workers=0, quiet=True)
    with pytest.raises(ValueError, match="no corpus"):
        run_publish(
            tmp_path, PublishOptions("a/b"), dry_run=tmp_path / "hub", workers=0, quiet=True
        )
    empty = write_corpus(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="no clip"):
        run_publish(empty, PublishOptions("a/b"), dry_run=tmp_path / "hub", workers=0, quiet=True)


def test_a_row_that_does_not_decode_is_named(tmp_path: Path) -> None:
    rows = make_rows(2)
    rows[1]["alpha"] = b"broken"
    path = write_corpus(tmp_path / "c", rows)
    with pytest.raises(ValueError, match=r"row 1 \(id 0000000000000001\)"):
        run_publish(path, PublishOptions("a/b"), dry_run=tmp_path / "hub", workers=0, quiet=True)


def test_other_configurations_of_a_card_stay(corpus: Path, folder: Path, tmp_path: Path) -> None:
    from pipelines.publish.files import make_parts, make_plan, make_rest

    plan = make_plan(corpus, PublishOptions("me/discs", config="large"), workers=0)
    old = (folder / "README.md").read_text()
    names = [made.name for made in make_parts(plan, tmp_path, {}, quiet=True)]
    sent = {name: Sent(1, "") for name in names}
    assert len(list(make_rest(plan, tmp_path, sent, existing_card=old))) == 6
    assert "large/train-00000.parquet" in names
    assert "large-preview/train-00000.parquet" in names
    data = read_metadata((tmp_path / "README.md").read_text())
    configs = [config["config_name"] for config in data["configs"]]
    assert configs == ["large", "large-preview", "default", "preview", "rejected"]
    assert [c["config_name"] for c in data["configs"] if c.get("default")] == ["default"]
    assert len(data["dataset_info"]) == 5


def test_hostile_text_in_markdown() -> None:
    assert "|" not in plain(HOSTILE) and "<" not in plain(HOSTILE) and "`" not in plain(HOSTILE)
    assert "\n" not in plain(HOSTILE) and len(plain("x" * 10_000)) < 200
    assert read_metadata("---\na: [\n---\n") == {} and read_metadata("no card") == {}
    assert yaml.safe_load("a: 1") == {"a": 1}


def test_publish_command(corpus: Path, tmp_path: Path) -> None:
    app = build_app()
    arguments = [
        "publish",
        str(corpus),
        "me/discs",
        "--dry-run",
        str(tmp_path / "hub"),
        "--workers",
        "0",
        "--quiet",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "hub" / "README.md").is_file() and "12 clips" in result.output
