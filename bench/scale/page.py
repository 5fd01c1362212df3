"""The viewer's page over a large corpus, scrolled in Chromium: how long it keeps the browser busy.

    python -m bench.scale.page [--rows 100000] [--seconds 20] [--screenshot FILE]

A corpus of so many rows, which share the media of one small clip, is served by `layerflow view
--serve` in a process of its own. Headless Chromium scrolls its page at the speed of a wheel that
does not rest, then sorts and filters it. Printed are the tasks that kept the page from answering
for more than 50 ms (the browser's own list of long tasks), the frames in which pictures moved, and
the seconds until the first clips were there. Needs `chromium` and `chromium-driver`.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.browser import Browser, browser
from tests.support.corpora import make_rows, write_corpus

LOADED = "return players.size > 0 && [...players].some((p) => p.shot || p.clip.problem)"
WATCH = """window.tasks = []; window.frames = [];
  new PerformanceObserver((list) => tasks.push(...list.getEntries().map((e) => e.duration)))
    .observe({ type: 'longtask', buffered: true });
  const beat = (now) => { frames.push(now); requestAnimationFrame(beat) };
  requestAnimationFrame(beat)"""
BUSY = """setTimeout(() => {
  const until = performance.now() + 200; while (performance.now() < until);
})"""
SCROLL = """const until = performance.now() + 1000 * arguments[0], pixels = arguments[1];
  const turn = () => {
    window.scrollBy(0, pixels);
    if (performance.now() < until) requestAnimationFrame(turn); else window.scrolled = true
  };
  window.scrolled = false; turn()"""
CHANGE = """const element = document.getElementById(arguments[0]);
  element.value = arguments[1];
  element.dispatchEvent(new Event('input', { bubbles: true }))"""
REST = 3.0  # seconds after what is measured
PIXELS = 60  # of a frame of scrolling: half a card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--screenshot", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus", many(options.rows))
        with served(folder / "corpus") as url, browser(folder) as page:
            started = time.perf_counter()
            page.open(url)
            page.wait(LOADED, 120)
            print(f"{options.rows} rows: first clips after {time.perf_counter() - started:.1f} s")
            page.run(WATCH)
            page.run(BUSY)
            page.wait("return tasks.some((task) => task >= 200)")  # else nothing below means much
            time.sleep(REST)
            page.run("tasks = []; frames = []")
            time.sleep(REST)
            report(page, "at rest", REST)
            page.run(SCROLL, options.seconds, PIXELS)
            page.wait("return window.scrolled", options.seconds + 120)
            time.sleep(REST)
            report(page, "scrolled", options.seconds + REST)
            if options.screenshot:
                page.screenshot(options.screenshot)
            for what, value in (("sort", "-flicker"), ("text", "disc 7")):
                page.run(CHANGE, what, value)
                time.sleep(REST)
                report(page, f"{what} {value}", REST)


def many(count: int) -> Iterator[dict[str, Any]]:
    """Rows of the media of nine clips, with other ids and scores."""
    kinds = make_rows(9)
    for index in range(count):
        row = kinds[index % len(kinds)]
        scores = {**row["quality"], "flicker": (index * 7919 % count) / count}
        yield {**row, "id": f"{index:016x}", "quality": scores}


@contextmanager
def served(corpus: Path) -> Iterator[str]:
    """The address at which a process serves the corpus."""
    program = str(Path(sys.executable).with_name("layerflow"))
    command = [program, "view", str(corpus), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"http://\S+", line):
                    yield found[0]
                    return
            raise SystemExit("the page was not served")
        finally:
            process.terminate()


def report(page: Browser, what: str, seconds: float) -> None:
    """Print and forget what was seen since the last time."""
    tasks, frames = page.run("const seen = [tasks, frames]; tasks = []; frames = []; return seen")
    gaps = [late - early for early, late in pairwise(frames)]
    worst = f"worst {max(tasks):.0f} ms" if tasks else "none"
    print(
        f"{what}: {len(tasks)} tasks over 50 ms ({worst}), {sum(t > 100 for t in tasks)} over 100; "
        f"{len(frames) / seconds:.0f} frames a second, half of them within "
        f"{statistics.median(gaps):.0f} ms, all within {max(gaps):.0f} ms"
    )


if __name__ == "__main__":
    main()
