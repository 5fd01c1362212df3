"""Work on untrusted media in child processes: a crash or a hang is an error of one request.

A handler is a top-level function that gets a folder and returns the function that answers
requests; both run in the child. Requests and answers are bytes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from layerflow.media import MediaError

ANSWER_SECONDS = 180.0
CHILD_MEMORY = 8 << 30
Handler = Callable[[Path], Callable[[bytes], bytes]]


class Contained:
    """One child process, started at the first request and replaced when it crashes or hangs."""

    def __init__(self, handler: Handler, path: Path, *, seconds: float = ANSWER_SECONDS) -> None:
        self._handler, self._path, self._seconds = handler, path, seconds
        self._process: Any = None
        self._pipe: Connection | None = None

    def ask(self, request: bytes) -> None:
        """Send a request; ``answer`` must be called before the next one."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            arguments = (theirs, self._handler, str(self._path))
            self._process = context.Process(target=_serve, args=arguments, daemon=True)
            self._process.start()
            theirs.close()
        assert self._pipe is not None
        try:
            self._pipe.send_bytes(request)
        except OSError:  # it died while idle (out of memory, for one): a fresh one gets the request
            self.stop()
            self.ask(request)

    def answer(self) -> bytes:
        """The answer to the last request. Raises MediaError for a failure, crash or hang."""
        assert self._pipe is not None
        try:
            if self._pipe.poll(self._seconds):
                data = self._pipe.recv_bytes()
                if data[:1] == b"+":
                    return data[1:]
                raise MediaError(data[1:].decode())
            text = f"decoding took longer than {self._seconds:.0f} s"
        except (EOFError, OSError):
            self._process.join()
            text = f"the decoder crashed (status {self._process.exitcode})"
        self.stop()
        raise MediaError(text)

    def stop(self) -> None:
        """End the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            assert self._pipe is not None
            self._pipe.close()
            self._process = None


def contained_map(
    handler: Handler, path: Path, requests: Sequence[bytes], workers: int
) -> Iterator[bytes | MediaError]:
    """Answers in the order of the requests, an error in place of an answer.

    workers: child processes; 0 runs the handler in this process, without containment.
    """
    if workers <= 0:
        work = handler(path)
        for request in requests:
            yield _tried(work, request)
        return
    children = [Contained(handler, path) for _ in range(min(workers, max(1, len(requests))))]
    try:
        for request, child in zip(requests, children, strict=False):
            child.ask(request)
        for index in range(len(requests)):
            child = children[index % len(children)]
            answer = _answer(child)
            if index + len(children) < len(requests):
                child.ask(requests[index + len(children)])
            yield answer
    finally:
        for child in children:
            child.stop()


def _answer(child: Contained) -> bytes | MediaError:
    try:
        return child.answer()
    except MediaError as error:
        return error


def _tried(work: Callable[[bytes], bytes], request: bytes) -> bytes | MediaError:
    try:
        return work(request)
    except MediaError as error:
        return error
    except Exception as error:  # bad data that breaks the work is a finding, not a crash
        return MediaError(f"{type(error).__name__}: {error}")


def _serve(pipe: Connection, handler: Handler, path: str) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY, CHILD_MEMORY))
    work = handler(Path(path))
    while True:
        try:
            request = pipe.recv_bytes()
        except (EOFError, OSError):  # the parent has gone
            return
        answer = _tried(work, request)
        failed = isinstance(answer, MediaError)
        pipe.send_bytes(b"-" + str(answer).encode() if failed else b"+" + answer)  # type: ignore[operator]
