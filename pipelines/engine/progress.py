"""How far a job is: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
EVERY = 60.0  # seconds


def progress(
    items: Iterable[T], total: int, quiet: bool, more: Callable[[], str] = str
) -> Iterator[T]:
    """The items as they come. quiet: nothing is shown. Lines and bar go to stderr.

    more: what a line says besides.
    """
    if quiet:
        yield from items
    elif not sys.stderr.isatty():
        yield from _lines(items, total, more)
    else:
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        yield from track(items, total=total, description="units", transient=True, console=console)


def _lines(items: Iterable[T], total: int, more: Callable[[], str]) -> Iterator[T]:
    """A line when ``EVERY`` seconds have gone since the last one and a unit ends."""
    started = said = time.monotonic()
    for done, item in enumerate(items, 1):
        now = time.monotonic()
        if now - said >= EVERY and done < total:
            said = now
            line = progress_line(done, total, now - started) + more()
            print(line, file=sys.stderr, flush=True)
        yield item


def progress_line(done: int, total: int, seconds: float) -> str:
    """``120 of 5,000 units in 40 min, 3.0 a minute, about 27 h left``."""
    rate = done / seconds
    return (
        f"{done:,} of {total:,} units in {in_words(seconds)}, {60 * rate:.2g} a minute, "
        f"about {in_words((total - done) / rate)} left"
    )


def in_words(seconds: float) -> str:
    """A duration in the unit that suits it: seconds, minutes, hours, days."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
