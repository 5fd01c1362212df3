"""Decode untrusted video in a child process: a crash or a hang becomes a MediaError.

``Decoder`` calls the functions of ``layerflow.media.video`` in a child of
``layerflow.media.isolate``. A child that dies or hangs is replaced at the next call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from layerflow.clip import U8
from layerflow.media.isolate import call, caller
from layerflow.media.mattes import fetch_matte
from layerflow.media.sandbox import ANSWER_SECONDS, CHILD_MEMORY, Contained
from layerflow.media.video import (
    F64,
    Box,
    Limits,
    VideoInfo,
    duration,
    fetch,
    frame_times,
    probe,
    read_frames,
    scan,
)

MAX_NOTES = 1000  # lines about damage that a child hands over


class Decoder:
    """A client of one decoding child. Use as a context manager; not thread-safe.

    deadline: seconds that one request may take. memory: address space of the child, bytes.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        deadline: float = ANSWER_SECONDS,
        memory: int = CHILD_MEMORY,
    ) -> None:
        self._limits = limits or Limits()
        self.deadline = deadline
        self._child = Contained(caller, Path(), seconds=deadline, memory=memory, writes=False)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the child, if there is one."""
        self._child.stop()

    def probe(self, path: Path) -> VideoInfo:
        """See ``layerflow.media.video.probe``."""
        return VideoInfo(**call(self._child, _probe, path, self._limits))

    def duration(self, path: Path) -> float:
        """See ``layerflow.media.video.duration``."""
        return call(self._child, duration, path, self._limits)

    def scan(
        self,
        path: Path,
        start: float = 0.0,
        end: float = np.inf,
        *,
        damage: list[str] | None = None,
        splices: list[float] | None = None,
    ) -> tuple[F64, U8]:
        """See ``layerflow.media.video.scan``."""
        found = call(self._child, _scan, path, start, end, self._limits)
        if damage is not None:
            damage += found["damage"]
        if splices is not None:
            splices += found["splices"]
        return np.asarray(found["times"], np.float64), found["thumbs"]

    def fetch(
        self,
        path: Path,
        times: Sequence[float],
        height: int,
        width: int,
        *,
        box: Box | None = None,
        op: Literal["fetch", "matte"] = "fetch",
    ) -> U8:
        """See ``video.fetch``; with ``op`` "matte" ``mattes.fetch_matte``."""
        read = fetch if op == "fetch" else fetch_matte
        return call(self._child, read, path, times, height, width, self._limits, box=box)

    def frame_times(self, path: Path) -> F64:
        """See ``layerflow.media.video.frame_times``."""
        return np.asarray(call(self._child, _frame_times, path, self._limits), np.float64)

    def read_frames(
        self,
        path: Path,
        *,
        max_frames: int = 10_000,
        size: tuple[int, int] | None = None,
        times: Sequence[float] | None = None,
    ) -> tuple[U8, float]:
        """See ``layerflow.media.video.read_frames``."""
        how: dict[str, Any] = {"max_frames": max_frames, "size": size, "times": times}
        return call(self._child, read_frames, path, limits=self._limits, **how)


_shared: Decoder | None = None


def shared_decoder(deadline: float) -> Decoder:
    """This process' decoder, kept for the next caller: starting a child takes a second.

    The child ends with this process. Not thread-safe.
    """
    global _shared
    if _shared is None or _shared.deadline != deadline:
        if _shared is not None:
            _shared.close()
        _shared = Decoder(deadline=deadline)
    return _shared


# ---- in the child: what is no plain value as one ----------------------------------------------


def _probe(path: Path, limits: Limits) -> dict[str, Any]:
    return asdict(probe(path, limits))


def _scan(path: Path, start: float, end: float, limits: Limits) -> dict[str, Any]:
    damage: list[str] = []
    splices: list[float] = []
    times, thumbs = scan(path, start, end, limits, damage=damage, splices=splices)
    notes = {"damage": damage[:MAX_NOTES], "splices": splices}
    return {"times": times.tolist(), "thumbs": thumbs, **notes}


def _frame_times(path: Path, limits: Limits) -> list[float]:
    return frame_times(path, limits).tolist()
