"""Batches prepared ahead of the steps that take them, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from typing import Any, Protocol

import torch

WISHED = 4  # steps of which rows in an object store are read ahead, beside those prepared


class Steps(Protocol):
    """``trainer.data.Batches``, as far as it is needed here."""

    @property
    def parts(self) -> Sequence[Any]: ...
    def step(self, step: int) -> list[Any]: ...
    def wish(self, step: int) -> None: ...


def depth(batches: Steps) -> int:
    """Steps to prepare ahead: where a GPU computes, or rows lie in an object store, the thread has
    something to hide; on CPUs it only takes from the step, a twentieth of it for a tiny network."""
    return 2 if torch.cuda.is_available() or from_afar(batches) else 0


def from_afar(batches: Steps) -> bool:
    return any(hasattr(part.source, "read_ahead") for part in batches.parts)


def ahead(batches: Steps, start: int, stop: int, depth: int) -> Generator[list[Any], None, None]:
    """Steps ``start`` to ``stop`` - 1, ``depth`` of them prepared ahead."""
    waiting: queue.Queue[list[Any] | BaseException] = queue.Queue(depth)
    stopped = threading.Event()
    pin = torch.cuda.is_available()
    afar = from_afar(batches)

    def put(value: list[Any] | BaseException) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(value, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(start, stop):
                if stopped.is_set():
                    return
                for far in range(step if step == start else step + WISHED, step + WISHED + 1):
                    if afar and far < stop:
                        batches.wish(far)
                prepared = batches.step(step)
                put([batch.pin() for batch in prepared] if pin else prepared)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            value = waiting.get()
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()
