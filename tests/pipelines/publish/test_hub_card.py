"""The published card as a stranger meets it, and what the command says when the Hub refuses."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from layerflow.corpus.table import Corpus
from pipelines.publish.card import is_foreign, plain, read_metadata
from tests.support.corpora import make_rows, write_corpus
from tests.support.hub_double import TOKEN, Fault, File, Hub
from tests.support.hub_kit import Client, environment, publication

COMMAND = "from layerflow.cli.main import main; main()"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("card") / "corpus", make_rows(9))


def python(hub: Hub, home: Path, *arguments: str, token: str = TOKEN) -> tuple[int, str]:
    """Status and all output of a fresh process."""
    done = subprocess.run(
        [sys.executable, *arguments], env=environment(hub, home, token), cwd=home,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_snippets_of_the_card_run(
    hub: Hub, client: Client, corpus: Path, tmp_path: Path
) -> None:
    client.call(publication(corpus, "me/snippets"))
    card = hub.files("me/snippets")["README.md"].data.decode()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    show = """
import hashlib, numpy
print(clip["id"], len(alpha), numpy.array_equal(alpha, layers.alpha), layers.blended.shape)
print(hashlib.sha256(layers.alpha.tobytes()).hexdigest())
"""
    status, output = python(hub, tmp_path, "-c", "\n".join(blocks) + show)
    assert status == 0, output
    clip = Corpus.open(corpus).clip(0)
    digest = hashlib.sha256(clip.alpha.tobytes()).hexdigest()
    wanted = f"0000000000000000 5 True {clip.blended.shape}\n{digest}"
    assert output.strip().endswith(wanted), output


def test_everything_that_the_card_points_to_is_there(
    hub: Hub, client: Client, corpus: Path
) -> None:
    client.call(publication(corpus, "me/links"))
    files = hub.files("me/links")
    card = files["README.md"].data.decode()
    for target in re.findall(r"\]\(([^)]+)\)", card):
        assert target in files or target.startswith("https://"), target
    metadata = read_metadata(card)
    folders = [one["path"] for c in metadata["configs"] for one in c["data_files"]]
    for pattern in folders:
        assert any(Path(name).match(pattern) for name in files), pattern
    for info in metadata["dataset_info"]:
        assert sum(split["num_examples"] for split in info["splits"]) == 9
    licences = files["LICENSE.md"].data.decode()
    assert "| CC-BY-4.0 | a maker | video-0.mp4, " in licences  # its background too
    assert plain("foreground_prompt") == "foreground_prompt" and "_" not in plain("_a_ __b__ _")


@pytest.mark.parametrize(
    ("token", "said"),
    [("hf_" + "wrongtoken", "401.*hf auth login"), ("", "no Hub token: run `hf auth login`")],
)
def test_a_token_that_is_wrong_or_missing(
    hub: Hub, corpus: Path, tmp_path: Path, token: str, said: str
) -> None:
    arguments = ["-c", COMMAND, "publish", str(corpus), "me/refused", "--workers", "0", "--quiet"]
    status, output = python(hub, tmp_path, *arguments, token=token)
    assert status == 2 and re.search(said, output), output
    assert "Traceback" not in output and (not token or token not in output)
    assert "me/refused" not in hub.repos


def test_the_token_is_never_written(hub: Hub, corpus: Path, tmp_path: Path) -> None:
    arguments = ["-c", COMMAND, "publish", str(corpus), "me/secret", "--workers", "0"]
    hub.faults[:] = [Fault("POST", "/commit/", "403", times=9)]
    outputs = [python(hub, tmp_path, *arguments)]
    hub.faults.clear()
    outputs.append(python(hub, tmp_path, *arguments))
    assert [status for status, _ in outputs] == [2, 0], outputs
    assert "needs write access" in outputs[0][1] and "verified" in outputs[1][1]
    assert not [text for _, text in outputs if TOKEN in text]
    written = [path for folder in (tmp_path, corpus) for path in folder.rglob("*")]
    assert not [p for p in written if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert not [n for n, file in hub.files("me/secret").items() if TOKEN.encode() in file.data]


def test_a_text_of_others_is_not_replaced(hub: Hub, client: Client, corpus: Path) -> None:
    client.call(publication(corpus, "me/others"))
    theirs = File(b"---\ntags: [music]\n---\n# Our songs\n", lfs=False)
    hub.repos["me/others"].put({"README.md": theirs, "song.txt": theirs})
    hub.blobs.clear()
    before = dict(hub.uploads)
    with pytest.raises(ValueError, match=r"README\.md with a text that this command did not write"):
        client.call(publication(corpus, "me/others"))
    assert dict(hub.uploads) == before and len(hub.files("me/others")) == 2
    hub.repos["me/others"].put({"song.txt": theirs})
    assert "verified" in client.call(publication(corpus, "me/others"))[1]
    assert "song.txt" in hub.files("me/others")
    assert is_foreign("text alone") and not is_foreign("") and not is_foreign("---\na: 1\n---\n")
