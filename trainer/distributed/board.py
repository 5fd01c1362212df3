"""What the driver of Ray Train and its workers tell each other: lines, a wish to stop, a verdict.

It lies in an actor beside the driver, so they need no folder that both see.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

POLL_SECONDS = 1.0


class Notes:
    """What is on the board. Lines are there until they are taken."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stopping = self.began = False
        self.error, self.finished = "", False

    def say(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines

    def stop(self) -> None:
        self.stopping = True

    def is_stopping(self) -> bool:
        return self.stopping

    def begin(self) -> None:
        """There is a first checkpoint."""
        self.began = True

    def has_begun(self) -> bool:
        return self.began

    def judge(self, error: str, finished: bool) -> None:
        self.error, self.finished = error, finished

    def verdict(self) -> tuple[str, bool]:
        return self.error, self.finished


def make_board() -> Any:
    """The handle of an actor with `Notes`, on this process's node; it takes no CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(Notes).options(num_cpus=0, scheduling_strategy=here).remote()


def ask(method: Any, *arguments: Any) -> Any:
    """What a method of the board returns, from any process of the cluster."""
    import ray

    return ray.get(method.remote(*arguments))


@contextmanager
def repeating(action: Callable[[], None]) -> Iterator[None]:
    """Within the block, a thread calls `action` every `POLL_SECONDS`, and once at the end."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(POLL_SECONDS):
            action()
        action()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def noticing(board: Any) -> Iterator[threading.Event]:
    """An event that is set soon after somebody wishes to stop."""
    seen = threading.Event()
    with repeating(lambda: seen.set() if ask(board.is_stopping) else None):
        yield seen


@contextmanager
def following(board: Any, log: Callable[[str], None], stop: threading.Event) -> Iterator[None]:
    """Log the lines that workers say, as they come; pass the wish to stop on to them."""

    def follow() -> None:
        for line in ask(board.take):
            log(line)
        if stop.is_set():
            ask(board.stop)

    with repeating(follow):
        yield
