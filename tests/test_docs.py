"""The pages: links lead somewhere, named files and options are there, the tours of readers run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from layerflow.cli.main import build_app
from pipelines.procedural import media

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "Makefile").exists())
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
MAKES = {"docs/contributing.md"}  # names files that its reader makes
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
PATH = re.compile(
    r"(?<![\w./-])(?:layerflow|pipelines|trainer|manifests|bench|docs|tests)/[\w./-]+"
)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def links(page: Path) -> list[str]:
    found = LINK.findall(FENCE.sub("", page.read_text()))
    return [link for link in found if "://" not in link]


def blocks(page: Path) -> list[str]:
    """The code of a page, block by block: indented by four, or fenced as ``sh``."""
    text = page.read_text()
    fenced = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^    .*\n)+", FENCE.sub("", text), re.MULTILINE)
    return [*fenced, *(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in indented)]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every ``layerflow`` command in the code of a page."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "layerflow" in words[:5]:
                yield words[words.index("layerflow") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_its_heading(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_reached_from_the_first_ones() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
            waiting += [target for target in targets if target in PAGES]
    assert set(PAGES) == reached


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_points_outside_the_project(page: Path) -> None:
    assert "see the issue" not in " ".join(page.read_text().lower().split())


@pytest.mark.parametrize("page", [page for page in PAGES if name(page) not in MAKES], ids=name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = {path for span in SPAN.findall(page.read_text()) for path in PATH.findall(span)}
    assert not [path for path in named if not (ROOT / path).exists()]


def leaves(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name, those of a group inside as ``GROUP COMMAND``."""
    for command, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from leaves(found, f"{above}{command} ")
        else:
            yield f"{above}{command}", found


def test_commands_and_options_of_the_pages_exist() -> None:
    options = {
        command: {
            text for option in found.params for text in (*option.opts, *option.secondary_opts)
        }
        for command, found in leaves(typer.main.get_command(build_app()))
    }
    seen, unknown = set(), []
    for page in PAGES:
        for words in commands(page):
            command = words[0] if words else "--help"
            if command.startswith("-"):
                continue
            if command not in options:
                command = " ".join(words[:2])
            seen.add(command)
            said = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
            if not said <= options.get(command, set()):
                unknown.append((name(page), words))
    assert not unknown
    assert seen == set(options) - {"demo"}  # the demo is a make target on the pages


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_tours_run_as_they_stand(page: str, tmp_path: Path) -> None:
    """In a folder with the ready manifests and, as after ``make demo``, a few drawn media."""
    drawn = tmp_path / "build" / "demo" / "media"
    media.make_videos(drawn / "videos", count=3, seed=1)
    media.make_stills(drawn / "foregrounds", count=8, seed=1)
    media.make_backgrounds(drawn / "backgrounds", count=8, seed=1)
    media.make_layered_stills(drawn / "stills", count=8, seed=1)
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    script = "\n".join(
        line
        for block in blocks(ROOT / page)
        for line in block.splitlines()
        if not line.startswith(("make ", ". .venv/"))
    )
    environment = {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["sh", "-eu", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    samples = next(path for path in tmp_path.rglob("samples") if path.name == "samples")
    assert (samples / "seed-0" / "foreground.mov").is_file()
    assert (samples / "layers" / "blended.mp4").is_file()
