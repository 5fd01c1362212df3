"""Decode untrusted video in a child process: a crash or a hang becomes a MediaError.

``Decoder`` talks to ``python -m layerflow.decode`` over pipes: a JSON line in, a JSON line and
raw bytes out. The child has a memory limit, every request a deadline; a child that dies or hangs
is killed and replaced at the next request.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from layerflow.clip import U8
from layerflow.locations import refuse_playlist
from layerflow.mattes import fetch_matte
from layerflow.media import MediaError
from layerflow.video import (
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
        self._memory = memory
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            self._child = None

    def probe(self, path: Path) -> VideoInfo:
        """See ``layerflow.video.probe``."""
        head, _ = self._ask({"op": "probe", "path": str(path)})
        return VideoInfo(**head["info"])

    def duration(self, path: Path) -> float:
        """See ``layerflow.video.duration``."""
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
        """See ``layerflow.video.scan``."""
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
        """See ``layerflow.video.fetch``; with ``op`` "matte" ``layerflow.mattes.fetch_matte``."""
        request = {"op": op, "path": str(path), "height": height, "width": width, "box": box}
        head, body = self._ask({**request, "times": [float(t) for t in times]})
        return _frames(head, body)

    def frame_times(self, path: Path) -> F64:
        """See ``layerflow.video.frame_times``."""
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
        """See ``layerflow.video.read_frames``."""
        request = {"op": "read", "path": str(path), "max_frames": max_frames, "size": size}
        chosen = None if times is None else [float(t) for t in times]
        head, body = self._ask({**request, "times": chosen})
        return _frames(head, body), float(head["fps"])

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        refuse_playlist(Path(request["path"]))
        child = self._start()
        assert child.stdin is not None
        message = json.dumps({**request, "limits": asdict(self._limits)}) + "\n"
        try:
            child.stdin.write(message.encode())
            child.stdin.flush()
            head, body = self._answer(child, time.monotonic() + self.deadline)
        except (BrokenPipeError, EOFError) as error:
            code = child.wait()
            self.close()
            raise MediaError(f"the decoder {_how_it_died(code)}") from error
        except TimeoutError as error:
            self.close()
            raise MediaError(f"decoding took longer than {self.deadline:.0f} s") from error
        if "error" in head:
            raise MediaError(head["error"])
        return head, body

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._child = subprocess.Popen(
                [sys.executable, "-m", "layerflow.decode", str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        return self._child

    @staticmethod
    def _answer(
        child: subprocess.Popen[bytes], deadline: float
    ) -> tuple[dict[str, Any], bytearray]:
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)

            def read(limit: int) -> bytes:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(child.stdout.fileno(), limit)  # type: ignore[union-attr]
                if not chunk:
                    raise EOFError
                return chunk

            data = bytearray()
            while b"\n" not in data:
                data += read(1 << 16)
            line, _, body = data.partition(b"\n")
            head = json.loads(line)
            while len(body) < head.get("bytes", 0):
                body += read(1 << 20)
            return head, body


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


def _how_it_died(code: int) -> str:
    if code < 0:
        return f"crashed (signal {signal.Signals(-code).name})"
    return f"stopped with status {code}"


def _frames(head: dict[str, Any], body: bytearray) -> U8:
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


def serve(memory: int) -> None:
    """Answer requests on stdin until it closes."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders that print must not write into the protocol
    for line in sys.stdin:
        try:
            head, frames = _handle(json.loads(line))
        except MediaError as error:
            head, frames = {"error": str(error)}, None
        except MemoryError:
            head, frames = {"error": "decoding needs more memory than allowed"}, None
        except Exception as error:
            head, frames = {"error": f"{type(error).__name__}: {error}"}, None
        if frames is not None:
            head |= {"shape": frames.shape, "bytes": frames.nbytes}
        out.write(json.dumps(head).encode() + b"\n")
        if frames is not None:
            out.write(np.ascontiguousarray(frames).data)
        out.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
