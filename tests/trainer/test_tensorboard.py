"""TensorBoard's own page of a tiny run, in a browser: its tags, its curves, the sampled clips."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from layerflow.clip import U8
from tests.support.browser import Browser, browser
from tests.support.training_runs import with_validation
from trainer import metrics
from trainer.distributed.launch import launch

pytestmark = pytest.mark.slow

SCALARS = ("train/loss", "train/learning_rate", "held_out/generate", "decompose/iou")
PICTURES = ("generate/clips", "decompose/clips")
# Cards of the page by their tag: where the chart or picture is, and the words of the card.
CARDS = """const all = [...document.querySelectorAll('card-view')];
const titled = all.filter((card) => card.querySelector('tb-truncated-path'));
return Object.fromEntries(titled.map((card) => {
  const shown = card.querySelector('line-chart, img');
  const box = shown?.getBoundingClientRect();
  return [card.querySelector('tb-truncated-path').title, { loaded: shown?.naturalWidth || 0,
    words: card.innerText.split(/\\s+/), box: box && [box.x, box.y, box.right, box.bottom] }];
}))"""


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """A server on a free port of 127.0.0.1 that knows the run's tags; its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--load_fast", "false"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            line = next(line for line in process.stdout if "http://" in line)
            address = "http://" + line.split("http://")[1].split()[0]
            until = time.monotonic() + 60
            while (
                not all(tag in tags(address) for tag in (*SCALARS, *PICTURES))
                and time.monotonic() < until
            ):
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def tags(address: str) -> str:
    found = ""
    for plugin in ("scalars", "images"):
        url = f"{address.rstrip('/')}/data/plugin/{plugin}/tags"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found += answer.read().decode()
    return found


class Page:
    """Cards of some tags, once their numbers and pictures are there, and a picture of them."""

    def __init__(self, page: Browser, address: str, tags: tuple[str, ...]) -> None:
        self.browser = page
        page.resize(1280, 1400)
        page.open(f"{address}?tagFilter={quote('^(' + '|'.join(tags) + ')$')}#timeseries")
        known = (
            "Object.values(cards).every((card) => card.loaded || card.words.includes('Smoothed'))"
        )
        names = f"Object.keys(cards).sort().join() === {','.join(sorted(tags))!r}"
        page.wait(f"const cards = (() => {{ {CARDS} }})(); return {names} && {known}", 90)
        self.cards: dict[str, dict[str, Any]] = page.run(CARDS)

    def shoot(self, path: Path) -> None:
        self.picture = np.asarray(Image.open(self.browser.screenshot(path)).convert("RGB"))

    def part(self, tag: str) -> U8:
        left, top, right, bottom = (round(value) for value in self.cards[tag]["box"])
        return self.picture[top:bottom, left:right]

    def curve(self, tag: str) -> float:
        """Over what share of the chart's width there is a line; axes, grid and text are grey."""
        chart = self.part(tag).astype(int)
        return float((chart.max(axis=2) - chart.min(axis=2) > 20).any(axis=0).mean())


def test_the_page_shows_curves_and_clips(tmp_path: Path) -> None:
    manifest = with_validation(tmp_path, tensorboard=True)
    assert launch(manifest, only="base", log=lambda line: None)
    rows = metrics.read(tmp_path / "out/metrics.csv")
    with tensorboard(tmp_path / "out/tensorboard") as address, browser(tmp_path) as chromium:
        page = Page(chromium, address, SCALARS + PICTURES)
        until = time.monotonic() + 60
        while True:  # charts are drawn by workers of their own
            page.shoot(tmp_path / "page.png")
            curves = {tag: page.curve(tag) for tag in SCALARS}
            if min(curves.values()) > 0.3 or time.monotonic() > until:
                break
        assert [url for url in chromium.requested() if not url.startswith(address)] == []
    assert min(curves.values()) > 0.3, curves
    value = page.cards["train/loss"]["words"][-4]  # ... Smoothed Value Step Relative
    assert float(value) == pytest.approx(rows[-1]["loss"], abs=1e-4)
    for tag in PICTURES:
        assert page.cards[tag]["loaded"] >= 64
        assert page.part(tag).std() > 10  # a picture, no empty frame
