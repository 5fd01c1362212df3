"""A second version killed on its way to the Hub at each of its points, and started again: nothing
is sent twice, nothing is lost, and readers see the first version or the second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from layerflow.corpus.table import Corpus
from pipelines.remove import Wanted, run_remove
from tests.support.hub_client import digest
from tests.support.hub_double import Fault, Hub
from tests.support.hub_kit import Client, publication
from tests.support.sourced import SECRET, clip, make

FIRST, ALL = 3, 11
SECRETS = [1, 4]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three rows at version 1, eleven at version 2; a row a file, as the tests publish it."""
    rows = [clip(n, SECRET if n in SECRETS else f"{n}.mp4") for n in range(ALL)]
    make(tmp_path / "corpus", rows[:FIRST])
    make(tmp_path / "corpus", rows, append=True)
    return tmp_path / "corpus"


def kill(hub: Hub, home: Path, request: dict[str, Any], fault: Fault | None) -> None:
    """Run a request in a process of its own, to the death that it or ``fault`` asks for."""
    hub.block.clear()
    hub.blocked.clear()
    hub.faults[:] = [fault] if fault else []
    victim = Client(hub, home)
    victim.ask(request)
    if fault is None:
        victim.process.wait(300)
        assert victim.process.returncode == -9
    else:
        assert hub.blocked.wait(300), hub.calls[-5:]
    victim.close()
    hub.block.set()
    hub.faults.clear()


POINTS = {
    "conversion": (3, None),
    "preview": (8 + 4, None),
    "upload": (0, Fault("PUT", "/blob/", "hang")),
    "commit": (0, Fault("POST", "/commit/publishing-", "hang")),
    "switch": (0, Fault("POST", "/commit/main", "hang")),
    "move": (0, Fault("POST", "git-receive-pack", "hang")),
    "tag": (0, Fault("POST", "/tag/", "hang")),
}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_on_the_way(
    hub: Hub, client: Client, corpus: Path, tmp_path: Path, point: str
) -> None:
    name = f"me/killed-{point}"
    home = tmp_path / "home"
    first = digest(Corpus.open(corpus, 1).rows())
    client.call(publication(Path(f"{corpus}@v1"), name))
    repo = hub.repos[name]
    before, head = dict(hub.files(name)), repo.head
    hub.blobs.clear()  # of the tests before
    hub.uploads.clear()
    death, fault = POINTS[point]
    switch = 4 if point == "move" else 300
    request = publication(corpus, name, batch=5, switch=switch, work=str(tmp_path / "work"))
    kill(hub, home, {**request, "death": death}, fault)
    if point != "tag":
        assert repo.head == head and hub.files(name) == before
        assert client.call({"open": f"hf://datasets/{name}"}) == first
    assert list(repo.tags) == ["v1"]
    lines = client.call(request)
    assert any("verified" in line for line in lines)
    assert set(hub.uploads.values()) == {1}
    assert list(repo.branches) == ["main"] and list(repo.tags) == ["v1", "v2"]
    assert head in repo.history("main")
    assert point == "move" or repo.commits[repo.head].parent == head  # one commit shows it
    assert client.call({"open": f"hf://datasets/{name}"}) == digest(Corpus.open(corpus).rows())
    assert client.call({"open": f"hf://datasets/{name}@v1"}) == first
    assert not any((tmp_path / "work").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "super-squash/main"),
        ("DELETE", "/tag/"),
        ("POST", "super-squash/moving-tag-v3"),
        ("POST", r"/tag/moving-tag-"),
        ("POST", "lfs-files/batch"),
    ],
)
def test_killed_while_it_purges(
    hub: Hub, client: Client, corpus: Path, tmp_path: Path, method: str, path: str
) -> None:
    name = "me/purged-" + re.sub("[^a-z0-9]", "", path)
    client.call(publication(corpus, name))
    run_remove(corpus, Wanted([SECRET]), purge=True, workers=0, quiet=True)
    client.call(publication(corpus, name))
    rows = [clip(n, f"{n}.mp4") for n in range(ALL, ALL + 2)]
    make(corpus, rows, append=True)
    request = publication(corpus, name, how={"purge_history": True}, work=str(tmp_path / "work"))
    kill(hub, tmp_path / "home", request, Fault(method, path, "hang"))
    client.call(request)
    repo = hub.repos[name]
    assert list(repo.branches) == ["main"] and set(repo.tags) == {"v3", "v4"}
    assert all(len(repo.history(tag)) == 1 for tag in ("main", "v3", "v4"))
    held = [file.data for _, file in repo.reachable()]
    assert not any(SECRET.encode() in data for data in [*held, *hub.blobs.values()])
    now = digest(Corpus.open(corpus).rows())
    assert client.call({"open": f"hf://datasets/{name}@v4"}) == now
    assert client.call({"open": f"hf://datasets/{name}@v3"}) == now[:-2]
