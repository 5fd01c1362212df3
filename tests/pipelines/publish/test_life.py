"""A corpus that grows, is corrected and loses a source, published at each turn to the Hub's double:
what is sent, what every tag holds, what is left after the history was purged, and that nothing
brings the source back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.corpus.derive import merge_corpora
from layerflow.corpus.latents import Latents
from layerflow.corpus.table import Corpus
from pipelines.annotate import run_annotate
from pipelines.remove import Wanted, run_remove
from tests.support.hub_client import digest
from tests.support.hub_double import Hub
from tests.support.hub_kit import Client, publication
from tests.support.sourced import OTHER, SECRET, bytes_of, clip, latents_of, make, numbers

pytestmark = pytest.mark.slow
NAME = "me/life"
ROWS, MORE = 20, 2
OF_SECRET = [7, 13]
CELL = 200_000


def padded(row: dict[str, Any]) -> dict[str, Any]:
    """Random bytes behind the colour layers, in a box that players skip."""
    noise = np.random.default_rng(int(row["id"], 16))
    for layer in ("foreground", "background", "blended"):
        row[layer] += (CELL + 8).to_bytes(4, "big") + b"free" + noise.bytes(CELL)
    return row


def rows() -> list[dict[str, Any]]:
    """Clips of a source each; two are of ``SECRET``."""
    return [
        padded(clip(n, SECRET if n in OF_SECRET else f"{n}.mp4", kind="mined"))
        for n in range(ROWS + MORE)
    ]


class Life:
    """The turns, one after the other: what was said, sent and held."""

    def __init__(self, hub: Hub, client: Client, corpus: Path) -> None:
        self.hub, self.client, self.corpus = hub, client, corpus
        self.held: dict[str, list[str]] = {}
        self.latents, self.dropped = corpus, dict[str, int]()
        self.sent: dict[str, tuple[int, int]] = {}  # whole files, new chunks
        self.received: dict[str, int] = {}
        self.changed: dict[str, set[str]] = {}

    def publish(self, tag: str, **how: Any) -> list[str]:
        there = dict(self.hub.files(NAME)) if NAME in self.hub.repos else {}
        whole, new, received = self.hub.whole, self.hub.new, self.hub.received
        lines: list[str] = self.client.call(
            publication(self.corpus, NAME, shard=1_900_000, how=how)
        )
        self.sent[tag] = self.hub.whole - whole, self.hub.new - new
        self.received[tag] = self.hub.received - received
        now = self.hub.files(NAME)
        self.changed[tag] = {n for n in there | now if there.get(n) != now.get(n)}
        self.held[tag] = digest(Corpus.open(self.corpus).rows())
        return lines


@pytest.fixture(scope="module")
def life(hub: Hub, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("life")
    found = Life(hub, client, folder / "corpus")
    every = rows()
    make(found.corpus, every[:ROWS])
    found.publish("v1")
    make(found.corpus, every, append=True)
    found.publish("v2")
    table = folder / "new.csv"
    lines = [f"{n:016x},a better prompt {n}" for n in (3, 4, 16)]
    table.write_text("\n".join(["id,blended_prompt", *lines]) + "\n")
    run_annotate(found.corpus, table)
    found.publish("v3")
    found.latents = latents_of(found.corpus, folder / "latents")
    wanted, how = Wanted([SECRET]), {"workers": 0, "quiet": True}
    found.dropped = run_remove(
        found.corpus, wanted, latents=[found.latents], purge=True, **how
    ).latents
    found.publish("v4")
    return found


def media(life: Life, tag: str) -> set[str]:
    return {name for name in life.changed[tag] if name.startswith(("data/", "preview/"))}


def test_every_tag_gives_its_rows(life: Life) -> None:
    for tag, rows in life.held.items():
        address = f"hf://datasets/{NAME}@{tag}"
        assert life.client.call({"open": address}) == rows, tag
        request = {"load": NAME, "streaming": True, "revision": tag}
        assert life.client.call(request) == rows, tag
    assert len({tuple(rows) for rows in life.held.values()}) == 4


@pytest.mark.parametrize("tag", ["v2", "v3", "v4"])
def test_a_turn_sends_what_it_changed(life: Life, tag: str) -> None:
    now = life.hub.files(NAME, tag)
    changed = sum(len(now[name].data) for name in life.changed[tag] & set(now))
    every = sum(len(file.data) for file in now.values())
    assert changed <= life.received[tag] < 1.05 * changed
    assert changed < 0.5 * every


def test_new_rows_go_to_new_files(life: Life) -> None:
    before = {n for n in life.hub.files(NAME, "v1") if n.startswith(("data/", "preview/"))}
    assert len(before) == 14 and not media(life, "v2") & before
    size = sum(len(life.hub.files(NAME, "v2")[name].data) for name in media(life, "v2"))
    whole, _ = life.sent["v2"]
    assert size <= whole - sheet(life, "v2") < 1.05 * size  # with the ids of all rows


def sheet(life: Life, tag: str) -> int:
    return len(life.hub.files(NAME, tag)["contact_sheet.png"].data)


def test_a_corrected_prompt_sends_no_media(life: Life) -> None:
    parts = {name.partition("/")[2] for name in media(life, "v3")}
    assert parts == {"train-00001.parquet", "train-00005.parquet"}  # of rows 3 and 4, and 16
    rows = [row for row in rows_of(life, "v3") if "better" in row["blended_prompt"]]
    assert len(rows) == 3
    whole, new = (size - sheet(life, "v3") for size in life.sent["v3"])
    held = sum(len(life.hub.files(NAME, "v3")[name].data) for name in media(life, "v3"))
    assert held <= whole and new < 0.25 * whole  # some chunks of the files, most are there


def rows_of(life: Life, tag: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = life.hub.files(NAME, tag)
    names = sorted(name for name in files if name.startswith("data/"))
    return [
        row for name in names
        for row in pq.read_table(pa.BufferReader(files[name].data), columns=[
            "id", "blended_prompt", "origin"]).to_pylist()
    ]  # fmt: skip


def test_a_removed_row_changes_its_file_only(life: Life) -> None:
    parts = {name.partition("/")[2] for name in media(life, "v4")}
    assert len(parts) == len(OF_SECRET)
    ids = [row["id"] for row in rows_of(life, "v4")]
    assert numbers(ids) == [n for n in range(ROWS + MORE) if n not in OF_SECRET]
    whole, new = (size - sheet(life, "v4") for size in life.sent["v4"])
    every = sum(len(file.data) for file in life.hub.files(NAME).values())
    assert new < 0.6 * whole < 0.2 * every
    for name in ("README.md", "LICENSE.md", "croissant.json", "stats.json"):
        assert SECRET not in life.hub.files(NAME, "v4")[name].data.decode()


def test_the_latents_lose_the_source(life: Life) -> None:
    assert life.dropped == {str(life.latents): 2 * len(OF_SECRET)}
    found = numbers(Latents.open(life.latents).column("source")[::2])
    assert found == [n for n in range(ROWS + MORE) if n not in OF_SECRET]


def test_the_same_again_sends_nothing(life: Life) -> None:
    commits = life.hub.repos[NAME].made
    whole = life.hub.whole
    lines = life.publish("again")
    assert life.hub.repos[NAME].made == commits and life.hub.whole == whole
    assert any("nothing is new" in line for line in lines)
    assert set(life.hub.repos[NAME].tags) == {"v1", "v2", "v3", "v4"}


def test_after_a_purge_the_removed_source_is_nowhere(life: Life) -> None:
    repo = life.hub.repos[NAME]
    secret = [row for row in rows() if row["origin"]["uri"] == SECRET]
    traces = [SECRET.encode(), *(row["id"].encode() for row in secret)]
    traces += [row["blended"][-40:] for row in secret]
    held = [file.data for _, file in repo.reachable()]
    assert all(any(trace in data for data in held) for trace in traces[-2:])
    lines = life.publish("purged", purge_history=True)
    assert set(repo.tags) == {"v4"} and len(repo.history("main")) == 1
    assert len(repo.history("v4")) == 1 and set(repo.branches) == {"main"}
    for data in [*(file.data for _, file in repo.reachable()), *life.hub.blobs.values()]:
        assert not [trace for trace in traces if trace in data]
    assert any("caches" in line for line in lines)
    assert life.client.call({"open": f"hf://datasets/{NAME}@v4"}) == life.held["v4"]
    with pytest.raises(ValueError, match="no such repository"):
        life.client.call({"open": f"hf://datasets/{NAME}@v1"})
    made = repo.made
    life.publish("still", purge_history=True)
    assert repo.made == made  # nothing is left to do


def test_the_source_does_not_return_by_any_way(life: Life, tmp_path: Path) -> None:
    every = rows()
    kept = Corpus.open(life.corpus).ids()
    assert make(life.corpus, every, append=True).added == 0  # the job that made it
    copies = [padded(clip(80, SECRET)), padded(clip(81, "copy.mp4", content=SECRET))]
    assert make(life.corpus, copies, OTHER, append=True).added == 0
    make(tmp_path / "other", copies)
    both = [Corpus.open(tmp_path / "other"), Corpus.open(life.corpus)]
    merge_corpora(both, tmp_path / "merged")
    assert Corpus.open(tmp_path / "merged").ids() == kept == Corpus.open(life.corpus).ids()
    assert SECRET.encode() not in bytes_of(life.corpus) + bytes_of(tmp_path / "merged")
    life.corpus = tmp_path / "merged"
    life.publish("merged")
    assert not media(life, "merged")
    for data in [*(file.data for _, file in life.hub.repos[NAME].reachable())]:
        assert SECRET.encode() not in data
