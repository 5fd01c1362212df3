"""Results go to paths: a URL as output is refused by every command, before any work."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from typer.testing import CliRunner

import manifests
from layerflow.cli.main import build_app
from layerflow.corpus.table import SCHEMA
from layerflow.corpus.writer import write_table
from layerflow.outputs import corpus_output, local_output
from tests.support.corpus_rows import make_row

READY = Path(inspect.getfile(manifests)).parent
TRAIN, DEMO = str(READY / "overfit-one-clip.yaml"), str(READY / "demo.yaml")
SIZE = ("--size", "48x64")

COMMANDS: dict[str, tuple[str, ...]] = {
    "mine": ("mine", "CORPUS", *SIZE, "--out"),
    "paste": ("paste", "--foregrounds", "CORPUS", "--backgrounds", "CORPUS", "--count=1", "--out"),
    "pack": ("pack", "CORPUS", "--out"),
    "build": ("build", "MANIFEST"),
    "filter": ("filter", "CORPUS", "--where", "flicker<1", "--out"),
    "merge": ("merge", "CORPUS", "--out"),
    "split": ("split", "CORPUS", "--out"),
    "retry": ("retry", "CORPUS", "--out"),
    "view": ("view", "CORPUS", "--out"),
    "encode": ("encode", "CORPUS", "--model", "m", "--out"),
    "train": ("train", TRAIN, "--out"),
    "plan": ("train", TRAIN, "--plan", "--out"),
    "sample": ("sample", "--model", "m", "--out"),
    "evaluate": ("evaluate", "--corpus", "CORPUS", "--model", "m", "--out"),
    "init": ("init", "--preset", "tiny"),
    "convert": ("convert", "checkpoint.pt", "--task", "gen_rgba", "--out"),
    "publish": ("publish", "CORPUS", "me/mine", "--dry-run"),
    "demo": ("demo", "--manifest", DEMO, "--out"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "clips"
    write_table(folder, [make_row(0), make_row(1)], SCHEMA)
    return folder


STORED = ("mine", "paste", "pack", "build", "encode", "train", "plan")
"""Commands whose results may lie in an object store."""
URLS = ("s3://bucket/a", "gs://b/c", "file:///x", "simplecache::s3://b")


@pytest.mark.parametrize(
    ("command", "url"),
    [(c, url) for c in COMMANDS for url in (URLS[2:] if c in STORED else URLS)],
)
def test_a_url_as_output_is_refused_and_makes_nothing(
    command: str, url: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = corpus.parent / "build.yaml"
    jobs = [(out, f"{{job: pack, inputs: [x], out: '{out}'}}") for out in ("first", url)]
    manifest.write_text(f"jobs: [{', '.join(text for _, text in jobs)}]")
    names = {"CORPUS": str(corpus), "MANIFEST": str(manifest)}
    arguments = [names.get(word, word) for word in COMMANDS[command]]
    done = CliRunner().invoke(build_app(), [*arguments, *([url] if command != "build" else [])])
    assert isinstance(done.exception, ValueError), done.output
    assert "local or mounted paths only" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["a", "./s3", "/mnt/s3/x", "C:/x", "a:b", "12:/x", "s3/bucket:/x"])
def test_paths_pass_as_they_are(path: str) -> None:
    assert local_output(path) == Path(path)


@pytest.mark.parametrize(
    "url", ["S3://b", " s3://b", "abfs+x://c", "hf://datasets/a/b", "memory://"]
)
def test_urls_of_any_scheme_are_refused_also_as_path(url: str) -> None:
    for path in (url, Path(url)):
        with pytest.raises(ValueError, match="not to URLs"):
            local_output(path)


def test_a_corpus_may_lie_in_an_object_store() -> None:
    assert corpus_output(" s3://bucket/a") == "s3://bucket/a"
    assert corpus_output("gs://b/c") == "gs://b/c" and corpus_output("a/b") == Path("a/b")
    with pytest.raises(ValueError, match="not to URLs"):
        corpus_output("hf://datasets/a/b")
