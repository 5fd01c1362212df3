"""A corpus of real media, all three kinds, to a double of the Hub and back: row for row equal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from layerflow.corpus.derive import merge_corpora
from layerflow.corpus.table import Corpus
from manifests.mine import MineOptions
from manifests.pack import PackOptions
from manifests.paste import PasteOptions
from pipelines.mine.job import run_mine
from pipelines.pack.job import run_pack
from pipelines.paste.job import run_paste
from tests.support.hub_client import digest
from tests.support.hub_double import Fault, Hub
from tests.support.hub_kit import Client, kill_and_restart, publication

pytestmark = pytest.mark.slow
SIZE = (64, 96)


@pytest.fixture(scope="module")
def corpus(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, media = tmp_path_factory.mktemp("media"), shared / "media"
    mined, pasted, stills = (str(folder / name) for name in ("mined", "pasted", "stills"))
    films = [str(media / "davis" / f"{name}.mp4") for name in ("dog", "rhino", "lucia")]
    about = {"size": SIZE, "frames": 8, "fps": 12.0, "licence": "CC-BY-4.0"}
    run_mine(MineOptions(inputs=films, out=mined, gate="off", **about), workers=0, quiet=True)
    run_paste(
        PasteOptions(
            foregrounds=[mined], backgrounds=[str(media / "video" / "flower.webm")],
            out=pasted, count=12, gate="off", **about,
        ),
        workers=0,
        quiet=True,
    )  # fmt: skip
    run_pack(
        PackOptions(inputs=[str(media / "stills")], out=stills, size=SIZE), workers=0, quiet=True
    )
    merge_corpora([Corpus.open(path) for path in (mined, pasted, stills)], folder / "all")
    kinds = Counter(row["kind"] for row in Corpus.open(folder / "all").rows(["kind"]))
    assert kinds["mined"] >= 3 and kinds["pasted"] >= 8 and kinds["image"] >= 8
    return folder / "all"


def test_every_row_comes_back(hub: Hub, client: Client, corpus: Path) -> None:
    request = publication(corpus, "me/media", shard=300_000, with_rejected=True)
    lines = client.call(request)
    assert "verified" in lines[1]
    data = [name for name in hub.files("me/media") if name.startswith("data/")]
    local = digest(Corpus.open(corpus).rows())
    assert len(data) > 3 and len(local) > 20
    for streaming in (False, True):
        assert client.call({"load": "me/media", "streaming": streaming}) == local


@pytest.mark.parametrize(
    ("method", "path", "skip"),
    [("PUT", "/blob/", 2), ("POST", "/verify", 3), ("POST", "/commit/", 0)],
)
def test_killed_and_started_again(
    hub: Hub, client: Client, corpus: Path, tmp_path: Path, method: str, path: str, skip: int
) -> None:
    request = publication(corpus, f"me/media-{skip}", shard=300_000)
    lines = kill_and_restart(hub, client, tmp_path / "home", request, method, path, skip)
    assert "verified" in lines[1]
    local = digest(Corpus.open(corpus).rows())
    assert client.call({"load": f"me/media-{skip}", "streaming": False}) == local


@pytest.mark.parametrize("kind", ["429", "503", "reset", "corrupt"])
def test_faults_in_mid_upload(hub: Hub, client: Client, corpus: Path, kind: str) -> None:
    hub.blobs.clear()
    fault = Fault("PUT", "/blob/", kind)
    hub.faults[:] = [Fault("PUT", "/blob/", "none", times=2), fault]
    lines = client.call(publication(corpus, f"me/media-{kind}", shard=300_000))
    assert fault.times == 0 and "verified" in lines[1]
