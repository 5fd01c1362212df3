"""How far a publication is, in bytes of media that went through: a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipelines.engine.progress import EVERY, in_words


class ByteProgress:
    """sizes: bytes of each piece of work, by its key."""

    def __init__(self, sizes: Mapping[str, int], quiet: bool) -> None:
        self.sizes, self.quiet = sizes, quiet
        self.total = sum(sizes.values())
        self.done = 0
        self.started = self.said = time.monotonic()

    def add(self, key: str) -> None:
        """A piece is done; says so when ``EVERY`` seconds have gone since the last line."""
        self.done += self.sizes.get(key, 0)
        now = time.monotonic()
        if not self.quiet and now - self.said >= EVERY and 0 < self.done < self.total:
            self.said = now
            print(byte_line(self.done, self.total, now - self.started), file=sys.stderr, flush=True)

    def watch(self, items: Iterable[Any], total: int, quiet: bool, *_: Any) -> Iterator[Any]:
        """``progress`` of a ``Pool``: units, or what is said of them, as they end."""
        for item in items:
            yield item
            self.add(item["key"] if isinstance(item, dict) else item.key)


def byte_line(done: int, total: int, seconds: float) -> str:
    """``1.2 of 980.0 GB in 10 min, 2.0 MB/s, about 6 days left``."""
    rate = done / seconds
    return (
        f"{done / 1e9:,.1f} of {total / 1e9:,.1f} GB in {in_words(seconds)}, "
        f"{rate / 1e6:.1f} MB/s, about {in_words((total - done) / rate)} left"
    )
