"""Work on untrusted data in child processes: a crash or a hang is an error of one request.

A handler is a top-level function that gets a path and returns the function that answers requests;
both run in the child. Requests are bytes, answers bytes or some buffers that are sent one after
the other. The child has a memory limit, a time limit for every request, an environment without
secrets, and no core dumps; it reads nothing from its parent but requests.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import pickle
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from layerflow.media.opening import MediaError
from layerflow.process.heap import keep_freed_memory

ANSWER_SECONDS = 180.0
CHILD_MEMORY = 8 << 30
CHILD_FILE_BYTES = 4 << 30  # of one file that a child writes: a preview on its way
PIPE_BYTES = 1 << 20
HEAD = "<Q??"  # of an answer: its bytes, whether it failed, whether it lies in the shared memory
Buffer = bytes | bytearray | memoryview
Work = Callable[[bytes], Buffer | Sequence[Buffer]]
Handler = Callable[[Path], Work]

# What a child sees of its parent's environment: how to run, nothing that opens a door.
KEPT = re.compile(
    r"PATH|HOME|USER|TZ|TMPDIR|LANG|LANGUAGE|LC_\w+|LD_LIBRARY_PATH|DYLD_\w+|VIRTUAL_ENV|"
    r"PYTHON\w*|OMP_\w+|KMP_\w+|OPENBLAS_\w+|MKL_\w+|NUMEXPR_\w+|OPENCV_\w+|CUDA_VISIBLE_DEVICES|"
    r"SYSTEMROOT|LAYERFLOW_\w+"
)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
FIXED = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from layerflow.media.sandbox import serve; serve()"
)


class Contained:
    """One child process, started at the first request and replaced when it crashes or hangs.

    seconds: that one request may take. memory: address space of the child, bytes. writes: whether
    it may write files. shared: bytes of memory that both see, where the system has such; an answer
    that fits comes through it, is not copied, and is gone with the next request. Not thread-safe.
    """

    def __init__(
        self,
        handler: Handler,
        path: Path,
        *,
        seconds: float = ANSWER_SECONDS,
        memory: int = CHILD_MEMORY,
        writes: bool = True,
        shared: int = 0,
    ) -> None:
        self.seconds = seconds
        self._area = _Area(shared) if shared and hasattr(os, "memfd_create") else None
        self._memory = memory
        limits = (memory, CHILD_FILE_BYTES if writes else 0, seconds)
        self._hello = pickle.dumps((handler, str(path), limits, self._area and self._area.key))
        self._child: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0

    @property
    def pid(self) -> int | None:
        """The child's process id, if there is one."""
        return self._child.pid if self._child is not None else None

    def ask(self, request: bytes) -> None:
        """Send a request; ``answer`` must be called before the next one."""
        for attempt in (1, 2):
            self._deadline = time.monotonic() + self.seconds
            try:
                if self._child is None or self._child.poll() is not None:
                    self._start()
                self._send(request)
                return
            except BrokenPipeError:
                if attempt == 1:  # it died while idle (out of memory, for one): a fresh one gets it
                    self.stop()
            except TimeoutError:
                return  # ``answer`` says so

    def answer(self) -> bytearray | memoryview:
        """The answer to the last request. Raises MediaError for a failure, crash or hang."""
        try:
            size, failed, apart = struct.unpack(HEAD, self._receive(struct.calcsize(HEAD)))
            if apart and self._area is not None and size <= len(self._area.view):
                return self._area.view[:size]
            if apart or size > self._memory:
                raise EOFError
            data = self._receive(size)
        except TimeoutError as error:
            self.stop()
            raise MediaError(f"decoding took longer than {self.seconds:.0f} s") from error
        except EOFError as error:
            text = f"the decoder {self._how_it_died()}"
            self.stop()
            raise MediaError(text) from error
        if failed:
            raise MediaError(data.decode(errors="replace"))
        return data

    def call(self, request: bytes) -> bytearray | memoryview:
        """``ask`` and ``answer``."""
        self.ask(request)
        return self.answer()

    def stop(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None
                pipe.close()

    def _start(self) -> None:
        self.stop()
        paths = json.dumps([str(path) or os.getcwd() for path in sys.path])
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-c", START, paths],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
            pass_fds=() if self._area is None else (self._area.key[0],),
        )
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            _widen(pipe.fileno())
        self._send(self._hello)

    def _send(self, data: bytes) -> None:
        assert self._child is not None and self._child.stdin is not None
        number = self._child.stdin.fileno()
        for part in (struct.pack("<Q", len(data)), data):
            left = memoryview(part)
            while left:
                self._wait(number, select.POLLOUT)
                left = left[os.write(number, left) :]

    def _receive(self, size: int) -> bytearray:
        if self._child is None or self._child.stdout is None:
            raise EOFError
        number, data, place = self._child.stdout.fileno(), bytearray(size), 0
        view = memoryview(data)
        while place < size:
            self._wait(number, select.POLLIN)
            got = os.readv(number, [view[place:]])
            if not got:
                raise EOFError
            place += got
        return data

    def _wait(self, number: int, event: int) -> None:
        poll = select.poll()
        poll.register(number, event)
        left = self._deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError

    def _how_it_died(self) -> str:
        if self._child is None:
            return "could not be started"
        try:
            code = self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            return "gave an answer that is none"
        if code < 0:
            return f"crashed (signal {signal.Signals(-code).name})"
        return f"crashed (status {code})"


class _Area:
    """Memory that a process shares with its child, without a name that others could open."""

    def __init__(self, size: int) -> None:
        self.key = (os.memfd_create("layerflow", os.MFD_CLOEXEC), size)
        os.ftruncate(*self.key)
        self.view = memoryview(mmap.mmap(*self.key))

    def __del__(self) -> None:
        os.close(self.key[0])


def clean_environment() -> dict[str, str]:
    """This process' environment as a child gets it: without tokens, keys and proxies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if KEPT.fullmatch(name) and not SECRET.search(name)
    }
    return kept | FIXED


def _widen(number: int) -> None:
    """A wide pipe needs fewer turns of the two processes; where there is none it is as it was."""
    with suppress(AttributeError, OSError):
        fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


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
        return bytes(child.answer())
    except MediaError as error:
        return error


def _tried(work: Work, request: bytes) -> bytes | MediaError:
    try:
        return b"".join(_buffers(work(request)))
    except Exception as error:
        return _as_media_error(error)


def _buffers(answer: Buffer | Sequence[Buffer]) -> Sequence[Buffer]:
    return [answer] if isinstance(answer, bytes | bytearray | memoryview) else answer


def _as_media_error(error: Exception) -> MediaError:
    """Bad data that breaks the work is a finding, not a crash."""
    if isinstance(error, MediaError):
        return error
    if isinstance(error, MemoryError):
        return MediaError("decoding needs more memory than allowed")
    return MediaError(f"{type(error).__name__}: {error}"[:2000])


# ---- in the child -----------------------------------------------------------------------------


def serve() -> None:
    """Answer requests on stdin until it closes."""
    keep_freed_memory()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    with open(os.devnull, "r+b") as nothing:  # decoders that print must not reach the protocol
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    handler, path, limits, key = pickle.loads(_read(requests) or b"")  # of the parent: trusted
    _limit(*limits)
    area = memoryview(mmap.mmap(*key)) if key else memoryview(b"")
    work: Work | None = None
    while (request := _read(requests)) is not None:
        _limit_time(limits[2])
        try:
            work = work or handler(Path(path))
            parts, failed = _buffers(work(request)), False
        except Exception as error:
            parts, failed = [str(_as_media_error(error)).encode(errors="replace")], True
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        size = sum(len(view) for view in views)
        apart = not failed and 0 < size <= len(area)
        place = 0
        for view in views if apart else ():
            area[place : place + len(view)] = view
            place += len(view)
        for left in (memoryview(struct.pack(HEAD, size, failed, apart)), *(() if apart else views)):
            while left:
                left = left[answers.write(left) :]


def _read(pipe: Any) -> bytes | None:
    size = pipe.read(8)
    if len(size) < 8:  # the parent has gone
        return None
    return pipe.read(struct.unpack("<Q", size)[0])


def _limit(memory: int, file_bytes: int, seconds: float) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _limit_time(seconds: float) -> None:
    """Processor time of the next request, should nobody be there any more to end it."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    most = int(used + (seconds + 10) * (os.cpu_count() or 1)) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (most, hard))
