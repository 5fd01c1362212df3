"""The page for contributors: each example is applied to a copy of the tree and run there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerflow.corpus.table import Table
from layerflow.media.cells import Bounds, decode_alpha, decode_color
from tests.support import ROOT, mined, packed

PAGE = (ROOT / "docs/contributing.md").read_text()
STEP = re.compile(
    r"(?:New file\s`(?P<new>[^`]+)`|In\s`(?P<old>[^`]+)`, (?:below `(?P<below>[^`]+)`|at the end))"
    r":\n\n```(?:python|diff)\n(?P<code>.*?)```",
    re.DOTALL,
)
TRIED = {
    "matting": "A matting backend",
    "captioner": "A captioner",
    "inpainter": "An inpainter",
    "importer": "An importer",
    "score": "A score and its gate",
    "column": "A column",
}
SHELL = (
    'set -e\nlayerflow() { "$PYTHON" -m layerflow.cli.main "$@"; }\npython() { "$PYTHON" "$@"; }\n'
)


@dataclass(frozen=True)
class Trial:
    """What an example left: its folder, what it printed, the files of the tree that it changed."""

    folder: Path
    said: str
    changed: set[str]
    named: set[str]

    def table(self, name: str) -> Table:
        """A corpus, opened without the columns that this tree knows."""
        return Table(self.folder / name)


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def apply(title: str, tree: Path) -> set[str]:
    """Do what a section says to a copy of the tree; returns the files that it names."""
    named = set()
    for step in STEP.finditer(section(title)):
        path = tree / (step["new"] or step["old"])
        named.add(str(path.relative_to(tree)))
        if step["new"]:
            assert not path.exists()
            path.write_text(step["code"])
            continue
        lines = path.read_text().splitlines(keepends=True)
        if step["below"]:
            places = [i for i, line in enumerate(lines, 1) if line.strip() == step["below"]]
            assert len(places) == 1, f"{path.name} has {len(places)} lines {step['below']}"
        else:
            places = [len(lines)]
        lines.insert(places[0], re.sub(r"^\+", "", step["code"], flags=re.MULTILINE))
        path.write_text("".join(lines))
    return named


def contents(tree: Path) -> dict[str, str]:
    files = (path for path in tree.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def attempt(title: str, folder: Path) -> Trial:
    """Copy the tree, apply a section and run its commands in a process of their own."""
    tree, work = folder / "tree", folder / "work"
    for package in ("layerflow", "pipelines", "trainer", "manifests"):
        shutil.copytree(ROOT / package, tree / package)
    before = contents(tree)
    named = apply(title, tree)
    work.mkdir(parents=True)
    for name in ("films", "cards", "stills"):
        (work / name).symlink_to(folder.parent / "inputs" / name)
    commands = re.findall(r"```bash\n(.*?)```", section(title), re.DOTALL)
    assert named and len(commands) == 1
    known = {**os.environ, "PYTHONPATH": str(tree), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "-c", SHELL + commands[0]], cwd=work, env=known, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    after = contents(tree)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    return Trial(work, done.stdout, changed, named)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film before a green screen, cards and stills, for all examples."""
    folder = tmp_path_factory.mktemp("contributing")
    (folder / "inputs/films").mkdir(parents=True)
    mined.green_screen(folder / "inputs/films/disc.mp4", 3, frames=10)
    for name in ("cards/front-1", "stills/one", "stills/two"):
        packed.write(folder / f"inputs/{name}.png", packed.disc())
    packed.write(folder / "inputs/cards/back-1.png", packed.slope())
    return folder


@pytest.fixture(scope="module")
def trials(inputs: Path) -> Iterator[dict[str, Future[Trial]]]:
    """All examples, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {kind: pool.submit(attempt, title, inputs / kind) for kind, title in TRIED.items()}


def only_named(trial: Trial, title: str) -> None:
    assert trial.changed == trial.named
    count = re.search(rf"\| {title.lower()} \| (\d+) \|", PAGE)
    assert count is not None and len(trial.named) == int(count[1])


@pytest.mark.parametrize("kind", TRIED)
def test_an_example_changes_only_the_files_that_it_names(kind: str, trials: Any) -> None:
    only_named(trials[kind].result(), TRIED[kind])


def layer(row: dict[str, Any], name: str) -> np.ndarray:
    decode = decode_alpha if name == "alpha" else decode_color
    return decode(row[name], Bounds.of(row))


def test_the_new_backend_mattes(trials: Any) -> None:
    trial = trials["matting"].result()
    alpha = layer(trial.table("mined").row(0), "alpha")
    assert 0.05 < (alpha > 127).mean() < 0.2
    options = json.loads((trial.folder / "mined/corpus.json").read_text())["options"]
    assert options["matting"] == "red" and "packages" not in options


def test_the_new_captioner_describes(trials: Any) -> None:
    row = trials["captioner"].result().table("mined").row(0)
    assert row["background_prompt"] == "Something green."


def test_the_new_inpainter_fills(trials: Any) -> None:
    row = trials["inpainter"].result().table("mined").row(0)
    background = layer(row, "background")[0].astype(int)
    hidden = layer(row, "alpha").min(0) == 255
    assert hidden.sum() > 200
    assert np.abs(background[hidden] - np.median(background[hidden], 0)).mean() < 3


def test_the_new_layout_is_packed(trials: Any) -> None:
    table = trials["importer"].result().table("packed")
    assert [row["origin"]["uri"] for row in table.rows()] == ["front-1.png"]


def test_the_new_score_is_stored_and_gated(trials: Any) -> None:
    trial = trials["score"].result()
    assert 1 <= trial.table("mined").row(0)["quality"]["elongation"] < 3
    assert "| `elongation` | longer side of the matte's box" in trial.said
    assert "| 0.5 to 6 | 0.5 to 4 |" in trial.said


def test_the_new_column_is_stored_checked_and_counted(trials: Any) -> None:
    trial = trials["column"].result()
    assert [row["source_format"] for row in trial.table("packed").rows()] == ["png", "png"]
    assert '"source_format": {\n    "png": 2\n  }' in trial.said


@pytest.mark.slow
def test_the_new_base_is_made(inputs: Path) -> None:
    title = "A base model"
    trial = attempt(title, inputs / "base")
    only_named(trial, title)
    config = json.loads((trial.folder / "model/transformer/config.json").read_text())
    assert config["num_layers"] == 1
