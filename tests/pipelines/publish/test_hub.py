"""Publishing to a double of the Hub with the real clients: resumed, verified, read back."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from layerflow.clip import ALPHA, BLENDED, LAYERS
from layerflow.corpus.table import Corpus
from layerflow.model.presets import init_directory
from pipelines.publish.card import read_metadata
from tests.support.browser import browser
from tests.support.corpora import make_rows, write_corpus
from tests.support.hub_client import digest
from tests.support.hub_double import TOKEN, Fault, Hub
from tests.support.hub_kit import Client, kill_and_restart, publication, shards


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("hub") / "corpus", make_rows(9))


def test_published_and_loaded_back(hub: Hub, client: Client, corpus: Path) -> None:
    lines = client.call(publication(corpus, "me/first"))
    assert "(private), commit" in lines[0] and "verified: " in lines[1]
    assert "tag v1" in lines[3] and "3 clips have no licence on record" in lines[4]
    assert hub.repos["me/first"].private and len(hub.repos["me/first"].commits) == 2
    assert len(shards(hub, "me/first")) > 2
    local = digest(Corpus.open(corpus).rows())
    for streaming in (False, True):
        assert client.call({"load": "me/first", "streaming": streaming}) == local


def test_columns_are_read_without_their_media(hub: Hub, client: Client, corpus: Path) -> None:
    client.call(publication(corpus, "me/columns", shard=1 << 30))
    request = {"load": "me/columns", "streaming": True, "columns": ["id", "kind"]}
    rows = [{"id": row["id"], "kind": row["kind"]} for row in Corpus.open(corpus).rows()]
    assert client.call(request) == digest(rows)


def test_the_hub_is_read_as_a_corpus(
    hub: Hub, client: Client, corpus: Path, tmp_path: Path
) -> None:
    client.call(publication(corpus, "me/read", shard=20_000))
    url = "hf://datasets/me/read"
    local = Corpus.open(corpus)
    assert client.call({"open": url}) == digest(local.rows())
    before = hub.served
    assert client.call({"open": url, "columns": ["id"]}) == digest(local.rows(["id"]))
    out = tmp_path / "few"
    assert client.call({"filter": url, "where": ["ghost>5"], "out": str(out)}) == [1, 8]
    media = sum(len(row[layer]) for row in local.rows(LAYERS) for layer in LAYERS)
    footers = 3 * sum(
        min(65_536, len(hub.files("me/read")[name].data)) for name in shards(hub, "me/read")
    )
    assert hub.served - before < footers + media / 2
    assert list(Corpus.open(out).rows()) == [local.row(7)]
    with pytest.raises(ValueError, match="there is no such repository"):
        client.call({"open": "hf://datasets/me/nothing"})
    with pytest.raises(ValueError, match=r"holds no other/\*.parquet"):
        client.call({"open": url + "/other"})


@pytest.mark.slow
@pytest.mark.parametrize("column", [BLENDED, ALPHA])
def test_streaming_a_column_of_media_fetches_little_else(
    hub: Hub, client: Client, tmp_path: Path, column: str
) -> None:
    """With the block size of docs/publish.md; the client's own is 5 MiB."""
    rows, noise = make_rows(9), np.random.default_rng(0)
    for row in rows:
        for layer in LAYERS:
            void = b"\xec\x01" + (60_000).to_bytes(7, "big")  # a box that players skip
            box = void if layer == ALPHA else (60_008).to_bytes(4, "big") + b"free"
            row[layer] += box + noise.bytes(60_000)
    corpus = write_corpus(tmp_path / "padded", rows)
    name = f"me/streamed-{column}"
    client.call(publication(corpus, name, shard=1 << 30))
    blocks = Client(hub, tmp_path / "home", FSSPEC_HF='{"block_size": 65536}')
    served = hub.served
    found = blocks.call({"load": name, "streaming": True, "columns": [column]})
    blocks.close()
    assert found == digest({column: row[column]} for row in rows)
    size = sum(len(row[column]) for row in rows)
    every = sum(len(hub.files(name)[file].data) for file in shards(hub, name))
    assert every > 3 * size and hub.served - served < 2 * size


@pytest.mark.slow
def test_the_hub_is_encoded(hub: Hub, client: Client, corpus: Path, tmp_path: Path) -> None:
    client.call(publication(corpus, "me/encoded"))
    options = {"model": str(init_directory(tmp_path / "model", "tiny")), "frames": 4}
    options |= {"out": str(tmp_path / "latents"), "size": [32, 48]}
    request = {"encode": ["hf://datasets/me/encoded/data/train-*.parquet"], "options": options}
    assert client.call(request) == [9, 9, []]
    served = hub.served
    assert client.call(request) == [9, 0, []]  # the cache holds it, the latents are up to date
    assert hub.served == served


def test_the_same_again_sends_nothing(hub: Hub, client: Client, corpus: Path) -> None:
    client.call(publication(corpus, "me/again"))
    uploads, commits = dict(hub.uploads), len(hub.repos["me/again"].commits)
    lines = client.call(publication(corpus, "me/again"))
    assert "verified" in lines[1] and dict(hub.uploads) == uploads
    assert len(hub.repos["me/again"].commits) == commits  # nothing changed: no empty commit


def test_stale_shards_go_and_other_configurations_stay(
    hub: Hub, client: Client, corpus: Path
) -> None:
    client.call(publication(corpus, "me/grown"))
    client.call(publication(corpus, "me/grown", config="extra"))
    held = dict(hub.files("me/grown"))
    old = held["data/train-00000.parquet"]  # as an older toolkit named it
    hub.repos["me/grown"].put({**held, "data/train-00000-of-00001.parquet": old})
    client.call(publication(corpus, "me/grown"))
    assert shards(hub, "me/grown") == [f"data/train-{n:05d}.parquet" for n in range(9)]
    assert len(shards(hub, "me/grown", "extra")) > 2
    card = read_metadata(hub.files("me/grown")["README.md"].data.decode())
    names = [config["config_name"] for config in card["configs"]]
    assert names == ["default", "preview", "extra", "extra-preview"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "preupload", "429", headers={"Retry-After": "1"}),
        Fault("POST", "/commit/", "503"),
        Fault("PUT", "/blob/", "reset"),
        Fault("PUT", "/blob/", "corrupt"),
        Fault("POST", "objects/batch", "500"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.path.strip('/')}",
)
def test_faults_are_survived(hub: Hub, client: Client, corpus: Path, fault: Fault) -> None:
    name = f"me/fault-{fault.kind}"
    hub.blobs.clear()  # so that there is something to send
    hub.faults[:] = [fault]
    lines = client.call(publication(corpus, name))
    assert fault.times == 0 and "verified" in lines[1]
    assert len(shards(hub, name)) > 2


def test_a_refusal_is_explained_without_the_token(hub: Hub, client: Client, corpus: Path) -> None:
    hub.faults[:] = [Fault("POST", "/preupload/", "403", times=9)]
    with pytest.raises(ValueError, match=r"403.*needs write access") as caught:
        client.call(publication(corpus, "me/refused"))
    assert TOKEN not in str(caught.value)
    hub.faults.clear()


def test_what_the_hub_holds_wrong_is_named(hub: Hub, client: Client, corpus: Path) -> None:
    hub.rotten.add("preview/train-00000.parquet")
    with pytest.raises(ValueError, match="1 files otherwise than they were sent: preview/train"):
        client.call(publication(corpus, "me/rotten"))
    hub.rotten.clear()


def test_forbidden_clips_do_not_go_to_a_public_repository(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    rows = make_rows(2)
    client.call(publication(write_corpus(tmp_path / "a", rows), "me/open", private=False))
    assert not hub.repos["me/open"].private
    rows[0]["origin"]["licence"] = "all rights reserved"
    path = write_corpus(tmp_path / "b", rows)
    with pytest.raises(ValueError, match="is public, but clips forbid redistribution"):
        client.call(publication(path, "me/open", acknowledge_licences=True))


@pytest.mark.parametrize(
    ("method", "path", "skip"),
    [
        ("PUT", "/blob/", 1),
        pytest.param("POST", "/verify", 2, marks=pytest.mark.slow),
        pytest.param("POST", "/commit/", 0, marks=pytest.mark.slow),
    ],
)
def test_killed_and_started_again(
    hub: Hub, client: Client, corpus: Path, tmp_path: Path, method: str, path: str, skip: int
) -> None:
    name = f"me/killed-{skip}"
    request = publication(corpus, name)
    lines = kill_and_restart(hub, client, tmp_path / "home", request, method, path, skip)
    assert "verified" in lines[1]
    assert client.call({"load": name, "streaming": False}) == digest(Corpus.open(corpus).rows())


def test_the_preview_plays_in_a_browser(
    hub: Hub, client: Client, corpus: Path, tmp_path: Path
) -> None:
    client.call(publication(corpus, "me/played"))
    file = tmp_path / "preview.parquet"
    file.write_bytes(hub.files("me/played")["preview/train-00000.parquet"].data)
    media = pq.read_table(file)["preview"][0].as_py()["bytes"]
    data = base64.b64encode(media).decode()
    page = tmp_path / "page.html"
    page.write_text(f"<video muted autoplay loop src='data:video/mp4;base64,{data}'></video>")
    with browser(tmp_path) as opened:
        opened.open(page.as_uri())
        opened.wait("return document.querySelector('video').readyState === 4")
        found = opened.run(
            """const video = document.querySelector('video');
            const context = document.createElement('canvas').getContext('2d');
            context.drawImage(video, 0, 0);
            const pixel = (x, y) => context.getImageData(x, y, 1, 1).data[0];
            return [video.videoWidth, video.videoHeight, pixel(4, 40), pixel(52, 4)]"""
        )
    assert found[:2] == [96, 64]
    assert found[2] < 12 and found[3] > 180  # outside: alpha is black, the checkerboard light
