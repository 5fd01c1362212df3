"""Publishing at size: files made and sent by tasks, a corpus in an object store, a branch that is
moved instead of a commit of thousands of entries."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from layerflow.clip import LAYERS
from layerflow.corpus.stats import cell_bytes, small_rows, stats
from layerflow.corpus.table import Corpus
from pipelines.engine.staging import Staging
from pipelines.engine.workers import Pool
from pipelines.publish.large.progress import byte_line
from pipelines.publish.large.reference import accepted, move_branch
from pipelines.publish.large.survey import survey
from pipelines.publish.large.tasks import ranges_of, rows_of
from pipelines.publish.tables import table_schema
from tests.support.hub_client import digest
from tests.support.hub_double import Fault, Hub
from tests.support.hub_kit import Client, publication
from tests.support.s3 import s3_bucket
from tests.support.sourced import clip, make

ROWS = 7


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("large") / "corpus"
    make(out, [clip(n, f"{n}.mp4") for n in range(4)])
    make(out, [clip(n, f"{n}.mp4") for n in range(ROWS)], append=True)
    return out


def git(folder: Path, *words: str) -> str:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a"}
    who |= {"GIT_COMMITTER_EMAIL": "a", "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", "-C", str(folder), *words], env=os.environ | who, check=True, capture_output=True
    )
    return done.stdout.decode().strip()


@pytest.fixture
def git_server(tmp_path: Path) -> Iterator[str]:
    """A real git server of the bare repositories below ``tmp_path``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            about = {
                "GIT_PROJECT_ROOT": str(tmp_path), "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": self.path, "REQUEST_METHOD": "POST", "QUERY_STRING": "",
                "CONTENT_TYPE": self.headers["Content-Type"], "CONTENT_LENGTH": str(len(body)),
                "REMOTE_USER": "me",
            }  # fmt: skip
            done = subprocess.run(
                ["git", "http-backend"], input=body, env=os.environ | about, capture_output=True
            )
            head, _, answer = done.stdout.partition(b"\r\n\r\n")
            self.send_response(200 if b"Status:" not in head else 403)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    "body", [b"", b"zzzz", b"<html>not a git server</html>", b"000eunpack ok\n"]
)
def test_an_answer_that_is_no_report_moves_nothing(body: bytes) -> None:
    assert not accepted(body, "main")
    assert accepted(b"000eunpack ok\n0017ok refs/heads/main\n0000", "main")


def test_a_real_git_server_moves_a_branch(
    tmp_path: Path, git_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    bare = tmp_path / "datasets" / "me" / "x.git"
    bare.mkdir(parents=True)
    git(bare, "init", "--bare", "--initial-branch=main")
    git(bare, "config", "http.receivepack", "true")
    tree = git(bare, "hash-object", "-t", "tree", "-w", os.devnull)
    first = git(bare, "commit-tree", tree, "-m", "first")
    second = git(bare, "commit-tree", tree, "-p", first, "-m", "second")
    git(bare, "branch", "main", first)
    git(bare, "branch", "staging", second)
    repository: Any = SimpleNamespace(api=SimpleNamespace(endpoint=git_server), repo_id="me/x")
    assert not move_branch(repository, "main", second, first)  # it is not where we believe
    assert git(bare, "rev-parse", "main") == first
    assert move_branch(repository, "main", first, second)
    assert git(bare, "rev-parse", "main") == second
    assert not move_branch(repository, "main", second, "1" * 40)  # no such commit
    assert not move_branch(repository, "main", second, "main")


def test_many_files_are_shown_by_moving_the_branch(
    hub: Hub, client: Client, corpus: Path, tmp_path: Path
) -> None:
    name = "me/moved"
    client.call(publication(Path(f"{corpus}@v1"), name))
    repo = hub.repos[name]
    head, before = repo.head, digest(Corpus.open(corpus, 1).rows())
    request = publication(corpus, name, batch=3, switch=2)
    calls = len(hub.calls)
    client.call(request)
    made = hub.calls[calls:]
    assert not any(call.endswith("/commit/main") for call in made)
    assert sum(call.endswith("git-receive-pack") for call in made) == 1
    history = repo.history("main")
    assert head in history and set(repo.branches) == {"main"}
    grown = [*reversed(history[: history.index(head) + 1])]
    entries = [
        sum(file is not repo.commits[old].files.get(path)
            for path, file in repo.commits[new].files.items())
        for old, new in itertools.pairwise(grown)
    ]  # fmt: skip
    assert len(entries) >= 3 and max(entries) <= 3 + 2  # and the record
    assert client.call({"open": f"hf://datasets/{name}@v2"}) == digest(Corpus.open(corpus).rows())
    assert client.call({"open": f"hf://datasets/{name}@v1"}) == before


def test_where_the_branch_cannot_be_moved_one_commit_shows_it(
    hub: Hub, client: Client, corpus: Path
) -> None:
    name = "me/unmoved"
    hub.faults[:] = [Fault("POST", "git-receive-pack", "403", times=9)]
    client.call(publication(corpus, name, batch=3, switch=2))
    hub.faults.clear()
    repo = hub.repos[name]
    assert len(repo.history("main")) == 2 and set(repo.branches) == {"main"}
    assert client.call({"open": f"hf://datasets/{name}"}) == digest(Corpus.open(corpus).rows())


def test_a_corpus_in_a_bucket_is_published_by_tasks(
    hub: Hub, client: Client, corpus: Path, tmp_path: Path
) -> None:
    client.call(publication(corpus, "me/here"))
    with s3_bucket("films") as system:
        system.put(str(corpus), "films/corpus", recursive=True)
        inside = Client(hub, tmp_path / "home")
        how = {"shared": "s3://films/work"}
        request = publication(Path("corpus"), "me/there", how=how)
        request["publish"] = "s3://films/corpus"
        try:
            lines = inside.call(request)
            assert any("verified" in line for line in lines)
            left = {name.split("/")[3] for name in system.find("films/work")}
            assert left == {"token", "shards"}  # what is known of shards serves the next version
            again = inside.call(request)
            assert any("nothing is new" in line for line in again)
        finally:
            inside.close()
    here, there = hub.files("me/here"), hub.files("me/there")
    media = {name for name in here if name.startswith(("data/", "preview/"))}
    assert len(media) == 2 * ROWS
    assert {n: there[n].sha256 for n in media} == {n: here[n].sha256 for n in media}
    assert there["stats.json"].data == here["stats.json"].data
    assert client.call({"open": "hf://datasets/me/there"}) == digest(Corpus.open(corpus).rows())


@pytest.mark.slow
def test_killed_tasks_go_on_by_file(hub: Hub, client: Client, corpus: Path, tmp_path: Path) -> None:
    hub.blobs.clear()
    hub.uploads.clear()
    how = {"shared": str(tmp_path / "shared")}
    request = publication(corpus, "me/tasks", how=how, work=str(tmp_path / "work"))
    victim = Client(hub, tmp_path / "home")
    victim.ask({**request, "death": 5})
    victim.process.wait(300)
    assert victim.process.returncode == -9
    victim.close()
    assert len(hub.uploads) == 4  # the fifth file was not made
    second = Client(hub, tmp_path / "home")
    second.call({**request, "death": 2 * ROWS - 4 + 1})  # dies if one is made again
    second.close()
    assert set(hub.uploads.values()) == {1}
    assert client.call({"open": "hf://datasets/me/tasks"}) == digest(Corpus.open(corpus).rows())


@pytest.mark.slow
def test_tasks_run_on_ray(hub: Hub, client: Client, corpus: Path, tmp_path: Path) -> None:
    how = {"shared": str(tmp_path / "shared"), "workers": 2}
    client.call(publication(corpus, "me/ray", how=how))
    client.call(publication(corpus, "me/one"))
    same = [name for name in hub.files("me/one") if name.startswith(("data/", "preview/"))]
    assert len(same) == 2 * ROWS
    for name in same:
        assert hub.files("me/ray")[name].sha256 == hub.files("me/one")[name].sha256


def test_a_damaged_shard_or_row_stops_the_tasks(hub: Hub, client: Client, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    make(out, [clip(n, f"{n}.mp4") for n in range(3)])
    shard = next(out.glob("data-*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    how = {"shared": str(tmp_path / "shared")}
    with pytest.raises(ValueError, match="cannot be used"):
        client.call(publication(out, "me/damaged", how=how))


def test_a_survey_says_of_a_corpus_what_it_is(corpus: Path, tmp_path: Path) -> None:
    staging = Staging.begin(tmp_path / "tasks")
    real, found = Corpus.open(corpus), survey(corpus, staging, Pool(0, True))
    assert list(small_rows(found)) == list(small_rows(real))
    assert cell_bytes(found).tolist() == cell_bytes(real).tolist()
    assert stats(found) == stats(real) and table_schema(found) == table_schema(real)
    tables = {place: Path(place).stat().st_mtime_ns for place in found.places}
    assert survey(corpus, staging, Pool(0, True)).places == found.places  # nothing is read again
    assert {place: Path(place).stat().st_mtime_ns for place in tables} == tables
    survey(f"{corpus}@v1", staging, Pool(0, True))
    assert [Path(place).exists() for place in found.places] == [True, False]


def test_a_survey_knows_equal_cells(tmp_path: Path) -> None:
    rows = [clip(n, f"{n}.mp4") for n in range(3)]
    rows[2] |= {layer: rows[0][layer] for layer in LAYERS}
    make(tmp_path / "c", rows)
    found = survey(tmp_path / "c", Staging.begin(tmp_path / "tasks"), Pool(0, True))
    assert stats(found)["duplicates"] == stats(Corpus.open(tmp_path / "c"))["duplicates"]
    assert stats(found)["duplicates"]["rows"] == 1


def test_rows_are_named_by_ranges() -> None:
    rows = np.asarray([0, 1, 2, 5, 7, 8])
    assert ranges_of(rows) == [[0, 3], [5, 6], [7, 9]]
    assert rows_of(ranges_of(rows)).tolist() == rows.tolist()
    assert ranges_of(np.zeros(0, int)) == []


def test_a_line_of_progress_says_bytes_and_time() -> None:
    line = byte_line(250_000_000_000, 1_000_000_000_000, 3600 * 5.0)
    assert line == "250.0 of 1,000.0 GB in 5 h, 13.9 MB/s, about 15 h left"
