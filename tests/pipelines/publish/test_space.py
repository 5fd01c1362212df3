"""``--push-space``: the page as a static Space on the Hub's double."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerflow.corpus.table import Corpus
from pipelines.publish.card import read_metadata
from tests.support.browser import browser
from tests.support.hub_double import File, Hub
from tests.support.hub_kit import Client, publication
from tests.support.sourced import clip, make

SPACE = "spaces.me/shown"


def test_the_page_is_a_static_space(hub: Hub, client: Client, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    make(corpus, [clip(n, f"{n}.mp4", kind="mined") for n in range(3)])
    request = publication(corpus, "me/shown", how={"space": True})
    lines = client.call(request)
    assert any(line.endswith("/spaces/me/shown") for line in lines)
    repo = hub.repos[SPACE]
    assert repo.private and repo.sdk == "static"
    files = hub.files(SPACE)
    about = read_metadata(files["README.md"].data.decode())
    assert (about["sdk"], about["app_file"]) == ("static", "index.html")
    assert about["datasets"] == ["me/shown"] and set(files) == {"README.md", "index.html"}
    (tmp_path / "index.html").write_bytes(files["index.html"].data)
    with browser(tmp_path) as opened:
        opened.open((tmp_path / "index.html").as_uri())
        opened.wait("return document.querySelectorAll('.card').length === 3")
    page = files["index.html"].data.decode()
    assert all(id in page for id in Corpus.open(corpus).ids())

    make(corpus, [clip(n, f"{n}.mp4", kind="mined") for n in range(4)], append=True)
    client.call({**request, "how": {"space": True, "purge_history": True}})
    assert len(repo.history("main")) == 1  # no earlier page is kept
    assert f"{3:016x}" in hub.files(SPACE)["index.html"].data.decode()

    repo.put({"README.md": File(b"---\ntitle: mine\n---\n", lfs=False)})
    with pytest.raises(ValueError, match="holds something else"):
        client.call(request)
