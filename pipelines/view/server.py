"""``layerflow view --serve``: the same page over a whole corpus, previews made when they are seen.

Listens on 127.0.0.1 only and answers requests for this host only, that its own page or the person
at the browser makes: not those of other pages. There are four addresses: the page, rows, rejected
rows and the preview of a row by its number; no file is ever served by name.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from layerflow.media.cells import MediaError
from layerflow.media.sandbox import Contained
from pipelines.view.page import overview, page, rejected_row, shortened
from pipelines.view.source import Requests, open_source, preview_handler, read_preview

CACHE_BYTES = 256 << 20
MAX_COUNT = 200
HEIGHTS = range(32, 1081)
COLUMNS = ("source", "kind", "id")
SAFE = {  # of every answer; the page's own policy, inside it, allows more than these take away
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Browsed:
    """The rows of what ``open_source`` opens, queried by the page; previews on demand."""

    def __init__(
        self,
        path: Path | str,
        *,
        workers: int | None = None,
        model: Path | None = None,
        against: Path | None = None,
    ) -> None:
        self._source = open_source(path, model, against)
        self._rows = list(self._source.rows())
        self.page = page({"mode": "serve", **overview(self._source, self._rows)}).encode()
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()
        self._cached = 0
        count = workers or min(4, os.cpu_count() or 1)
        handler = preview_handler(path, model, against)
        self._idle = [Contained(handler, Path(path)) for _ in range(count)]
        self._free = threading.Semaphore(count)
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._last: tuple[dict[str, str], list[dict[str, Any]]] = {}, self._rows

    def rows(self, query: dict[str, str]) -> dict[str, Any]:
        """Rows that pass, as ``{"total", "rows"}``. Keys: kind, licence, source, text, score, min,
        max, sort (``+name`` or ``-name``), offset, count. Raises ValueError for bad numbers."""
        low, high = _number(query, "min", -math.inf), _number(query, "max", math.inf)
        score, text = query.get("score", ""), query.get("text", "").lower()
        bounded = bool(score) and (math.isfinite(low) or math.isfinite(high))

        def passes(row: dict[str, Any]) -> bool:
            if query.get("kind") and row["kind"] != query["kind"]:
                return False
            licence = row.get("licence") or "not stated"
            if query.get("source") and row["source"] != query["source"]:
                return False
            if query.get("licence") and licence != query["licence"]:
                return False
            if bounded and not low <= row["scores"].get(score, math.nan) <= high:
                return False
            texts = (row["id"], row["source"], *row["prompts"].values())
            return not text or any(text in part.lower() for part in texts)

        asked = {name: value for name, value in query.items() if name not in ("offset", "count")}
        before, found = self._last
        if asked != before:  # a page that scrolls asks the same again and again
            found = _sorted([row for row in self._rows if passes(row)], query.get("sort", ""))
            self._last = asked, found
        return {"total": len(found), "rows": [shortened(row) for row in _slice(found, query)]}

    def rejected(self, query: dict[str, str]) -> dict[str, Any]:
        """Rejected rows as ``{"total", "rows"}``. Keys: reason, offset, count."""
        reason = query.get("reason")
        rows = [
            row
            for row in map(rejected_row, islice(self._source.rejected(), 100_000))
            if not reason or row["general"] == reason
        ]
        return {"total": len(rows), "rows": _slice(rows, query)}

    def preview(self, index: int, height: int, wanted: Callable[[], bool] = lambda: True) -> bytes:
        """The answer of ``previewer``, from the cache or from a child process.

        wanted: asked when a process is free: whether there is still somebody to answer.
        Raises IndexError for a row that is not there, MediaError for one that does not decode,
        ConnectionError when the preview is not wanted any more.
        """
        if not 0 <= index < len(self._rows):
            raise IndexError(f"there is no row {index}")
        request = json.dumps({"index": index, "height": height}).encode()
        with self._lock:
            if request in self._cache:
                self._cache.move_to_end(request)
                return self._cache[request]
        with self._child() as child:
            if not wanted():
                raise ConnectionAbortedError
            with self._reading:  # of a corpus that lies elsewhere, rows are read here
                message = Requests(self._source, [index], height)[0]
            answer = bytes(child.call(message))
        with self._lock:
            self._cached += len(answer) - len(self._cache.get(request, b""))
            self._cache[request] = answer
            while self._cached > CACHE_BYTES:
                self._cached -= len(self._cache.popitem(last=False)[1])
        return answer

    @contextmanager
    def _child(self) -> Iterator[Contained]:
        with self._free:
            with self._lock:
                child = self._idle.pop()
            try:
                yield child
            finally:
                with self._lock:
                    self._idle.append(child)

    def close(self) -> None:
        for child in self._idle:
            child.stop()


def _number(query: dict[str, str], name: str, default: float) -> float:
    text = query.get(name, "")
    try:
        return float(text) if text else default
    except ValueError as error:
        raise ValueError(f"{name} must be a number, not {text[:40]!r}") from error


def _slice(rows: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    offset = max(0, int(_number(query, "offset", 0)))
    return rows[offset : offset + min(MAX_COUNT, max(0, int(_number(query, "count", 24))))]


def _sorted(rows: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    name = order[1:]
    if not name:
        return rows

    def key(row: dict[str, Any]) -> Any:
        return row[name] if name in COLUMNS else row["scores"].get(name)

    known = [row for row in rows if key(row) is not None]
    known.sort(key=key, reverse=order[0] == "-")
    return known + [row for row in rows if key(row) is None]


def make_server(browsed: Browsed, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1; port 0 takes a free one (``server.server_address``)."""

    class Handler(_Handler):
        content = browsed

    server = _Server(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    return server


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    content: Browsed
    server_version, sys_version = "layerflow", ""
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be silent

    def do_GET(self) -> None:
        if problem := self._foreign():
            self._send(403, problem.encode())
            return
        try:
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            self._route(parts.path, query)
        except (ValueError, OverflowError) as error:
            status = 422 if isinstance(error, MediaError) else 400
            self._send(status, str(error).encode())
        except IndexError as error:
            self._send(404, str(error).encode())
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            self._send(500, f"the corpus cannot be read: {error}".encode())

    def _only_get(self) -> None:
        self.close_connection = True  # a body may follow, which nobody reads
        self._send(405, b"this server answers GET only", extra={"Allow": "GET"})

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _only_get  # noqa: N815

    def _foreign(self) -> str:
        """Why a request is refused: it names another host that points here (DNS rebinding), or
        another page makes it. Empty when it is not."""
        host = self.headers.get("Host", "")
        if not re.fullmatch(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", host, re.ASCII):
            return "this server answers on 127.0.0.1 only"
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        opened = self.path == "/" and self.headers.get("Sec-Fetch-Dest") == "document"
        elsewhere = site not in ("none", "same-origin") and not opened  # its address may be a link
        if elsewhere or origin not in (None, f"http://{host}"):
            return "this server answers its own page only"
        return ""

    def _route(self, path: str, query: dict[str, str]) -> None:
        lists: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
            "/rows": self.content.rows,
            "/rejected": self.content.rejected,
        }
        if path == "/":
            self._send(200, self.content.page, "text/html; charset=utf-8")
        elif path in lists:
            self._send(200, json.dumps(lists[path](query)).encode(), "application/json")
        elif number := re.fullmatch(r"/preview/([0-9]{1,9})", path):
            height = int(_number(query, "height", 144))
            if height not in HEIGHTS:
                raise ValueError(f"height must be {HEIGHTS.start} to {HEIGHTS.stop - 1}")
            preview = read_preview(self.content.preview(int(number[1]), height, self._wanted))
            about = {"X-Preview": json.dumps(preview.plain())}
            self._send(200, preview.media, preview.mime, about)
        else:
            self._send(404, b"there is nothing here")

    def _wanted(self) -> bool:
        """False when the browser has closed the connection: it scrolled on."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return not readable or bool(self.connection.recv(1, socket.MSG_PEEK))

    def _send(
        self,
        status: int,
        body: bytes,
        mime: str = "text/plain",
        extra: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        headers = {"Content-Type": mime, "Content-Length": str(len(body))}
        for name, value in (headers | SAFE | (extra or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the address of the page."""


def serve(
    path: Path | str,
    *,
    port: int = 8000,
    model: Path | None = None,
    against: Path | None = None,
) -> None:
    """Serve the page until interrupted. Prints the address."""
    with closing(Browsed(path, model=model, against=against)) as browsed:
        try:
            server = make_server(browsed, port)
        except OSError as error:
            raise ValueError(f"port {port} is not free ({error}): give --port 0") from error
        with server, suppress(KeyboardInterrupt):
            print(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
            server.serve_forever()
