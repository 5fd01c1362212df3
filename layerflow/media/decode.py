"""Decode untrusted video in a child process: a crash or a hang becomes a MediaError.

``Decoder`` asks a child of ``layerflow.media.sandbox``: JSON in, a JSON line and raw bytes out. A
child that dies or hangs is replaced at the next request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from layerflow.clip import U8
from layerflow.media.cells import MediaError
from layerflow.media.mattes import fetch_matte
from layerflow.media.sandbox import Buffer, Contained, Work
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

DEADLINE_SECONDS = 180.0
MEMORY_BYTES = 8 << 30


class Decoder:
    """A client of one decoding child. Use as a context manager; not thread-safe.

    deadline: seconds that one request may take. memory: address space of the child, bytes.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        deadline: float = DEADLINE_SECONDS,
        memory: int = MEMORY_BYTES,
    ) -> None:
        self._limits = limits or Limits()
        self.deadline = deadline
        self._child = Contained(film_reader, Path(), seconds=deadline, memory=memory, writes=False)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the child, if there is one."""
        self._child.stop()

    def probe(self, path: Path) -> VideoInfo:
        """See ``layerflow.media.video.probe``."""
        head, _ = self._ask({"op": "probe", "path": str(path)})
        return VideoInfo(**head["info"])

    def duration(self, path: Path) -> float:
        """See ``layerflow.media.video.duration``."""
        head, _ = self._ask({"op": "duration", "path": str(path)})
        return float(head["seconds"])

    def scan(
        self,
        path: Path,
        start: float = 0.0,
        end: float = 1e12,
        *,
        damage: list[str] | None = None,
        splices: list[float] | None = None,
    ) -> tuple[F64, U8]:
        """See ``layerflow.media.video.scan``."""
        head, body = self._ask({"op": "scan", "path": str(path), "start": start, "end": end})
        if damage is not None:
            damage += head["damage"]
        if splices is not None:
            splices += head["splices"]
        return np.asarray(head["times"]), _frames(head, body)

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
        request = {"op": op, "path": str(path), "height": height, "width": width, "box": box}
        head, body = self._ask({**request, "times": [float(t) for t in times]})
        return _frames(head, body)

    def frame_times(self, path: Path) -> F64:
        """See ``layerflow.media.video.frame_times``."""
        head, _ = self._ask({"op": "times", "path": str(path)})
        return np.asarray(head["times"])

    def read_frames(
        self,
        path: Path,
        *,
        max_frames: int = 10_000,
        size: tuple[int, int] | None = None,
        times: Sequence[float] | None = None,
    ) -> tuple[U8, float]:
        """See ``layerflow.media.video.read_frames``."""
        request = {"op": "read", "path": str(path), "max_frames": max_frames, "size": size}
        chosen = None if times is None else [float(t) for t in times]
        head, body = self._ask({**request, "times": chosen})
        return _frames(head, body), float(head["fps"])

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
        message = json.dumps({**request, "limits": asdict(self._limits)})
        answer = self._child.call(message.encode())
        assert isinstance(answer, bytearray)  # nothing is shared with this child
        end = answer.index(b"\n")
        return json.loads(answer[:end]), memoryview(answer)[end + 1 :]


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


def _frames(head: dict[str, Any], body: memoryview) -> U8:
    return np.frombuffer(body, np.uint8).reshape(head["shape"])


def _handle(request: dict[str, Any]) -> tuple[dict[str, Any], U8 | None]:
    path, limits = Path(request["path"]), Limits(**request["limits"])
    if request["op"] == "probe":
        return {"info": asdict(probe(path, limits))}, None
    if request["op"] == "duration":
        return {"seconds": duration(path, limits)}, None
    if request["op"] == "scan":
        damage: list[str] = []
        splices: list[float] = []
        span = request["start"], request["end"]
        times, thumbs = scan(path, *span, limits, damage=damage, splices=splices)
        head = {"times": times.tolist(), "damage": damage[:1000], "splices": splices}
        return head, thumbs
    if request["op"] == "fetch":
        size = request["height"], request["width"]
        return {}, fetch(path, request["times"], *size, limits, box=request["box"])
    if request["op"] == "matte":
        size = request["height"], request["width"]
        return {}, fetch_matte(path, request["times"], *size, limits, box=request["box"])
    if request["op"] == "read":
        size = request["size"] and tuple(request["size"])
        frames, fps = read_frames(
            path,
            max_frames=request["max_frames"],
            limits=limits,
            size=size,
            times=request["times"],
        )
        return {"fps": fps}, frames
    if request["op"] == "times":
        return {"times": frame_times(path, limits).tolist()}, None
    raise MediaError(f"unknown request {request['op']!r}")


def film_reader(path: Path) -> Work:
    """The handler of ``Decoder``, for ``layerflow.media.sandbox``."""

    def answer(request: bytes) -> Sequence[Buffer]:
        head, frames = _handle(json.loads(request))
        if frames is None:
            return [json.dumps(head).encode() + b"\n"]
        head |= {"shape": frames.shape}
        return [json.dumps(head).encode() + b"\n", np.ascontiguousarray(frames).data]

    return answer
