"""A handler of ``layerflow.media.sandbox`` that tries what a compromised decoder would try."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

from layerflow.media.isolate import isolated
from layerflow.media.sandbox import Work


@isolated
def crashes(number: int) -> None:
    os.kill(os.getpid(), number)


@isolated
def where() -> tuple[int, dict[str, str]]:
    """The process, and what it sees of the environment."""
    return os.getpid(), dict(os.environ)


def told(path: Path) -> Work:
    """What a compromised decoder would try: the request says what."""

    def answer(request: bytes) -> bytes:
        word, _, rest = request.decode().partition(" ")
        if word == "environment":
            return json.dumps(dict(os.environ)).encode()
        if word == "write":
            Path(rest).write_bytes(b"x" * 10)
        if word == "descriptor":
            os.fstat(int(rest))
        if word == "bytes":
            return b"7" * int(rest)
        if word == "memory":
            return bytes(1 << 34)
        if word == "signal":
            os.kill(os.getpid(), int(rest))
        if word == "print":
            os.write(1, b"\xff" * 100)
        if word == "sleep":
            time.sleep(60)
        if word == "core":
            return str(resource.getrlimit(resource.RLIMIT_CORE)[0]).encode()
        return b"done"

    return answer
