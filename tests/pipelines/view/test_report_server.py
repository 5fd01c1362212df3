"""The server of the page: whom it answers, with what, and that it serves nothing but the corpus."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.view.server import Browsed, make_server, serve
from tests.support.corpora import make_rows, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("server") / "corpus", make_rows(3))


@pytest.fixture(scope="module")
def port(corpus: Path) -> Iterator[int]:
    browsed = Browsed(corpus, workers=1)
    with make_server(browsed, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
    browsed.close()


def ask(
    port: int, path: str = "/rows", method: str = "GET", body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_it_listens_on_this_machine_only(port: int) -> None:
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for address in {*others, "127.0.0.2"} - {"127.0.0.1"}:
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        with socket.socket(family) as other, pytest.raises(OSError):
            other.settimeout(2)
            other.connect((address, port))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),  # as a browser says port 80
        ("localhost:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("127.0.0.1:80@evil.example", 403),
        ("0.0.0.0:8000", 403),
        ("", 403),
    ],
)
def test_only_for_this_host(port: int, host: str, status: int) -> None:
    assert ask(port, Host=host)[0] == status


def test_only_for_its_own_page(port: int) -> None:
    own = f"http://127.0.0.1:{port}"
    for path in ("/rows", "/rejected", "/preview/0", "/"):
        assert ask(port, path, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200
        for foreign in ("http://evil.example", "null", "http://127.0.0.1:1"):
            assert ask(port, path, Origin=foreign)[0] == 403
        assert ask(port, path, Sec_Fetch_Site="cross-site", Sec_Fetch_Dest="image")[0] == 403
    linked = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}
    assert ask(port, "/", **linked)[0] == 200 and ask(port, "/rows", **linked)[0] == 403
    assert ask(port, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Dest="iframe")[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_only_get(port: int, method: str) -> None:
    status, headers, _ = ask(port, "/", method, b"x" * 10 if method != "HEAD" else b"")
    assert status == 405 and headers["Allow"] == "GET"
    assert "Access-Control-Allow-Origin" not in headers


def test_every_answer_is_closed_to_other_pages(port: int) -> None:
    for path in ("/", "/rows", "/preview/0", "/preview/99", "/nothing"):
        _, headers, body = ask(port, path)
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Server"] == "layerflow "
        if path == "/":
            assert b"default-src 'none'" in body and b"script-src 'sha256-" in body
            assert b"connect-src 'self'" in body and b"unsafe-eval" not in body


@pytest.mark.parametrize(
    "path",
    [
        "/state.json",
        "/data-00000-of-00001.arrow",
        "/.inputs.json",
        "/rejected/state.json",
        "/preview/0/../../state.json",
        "/preview/%2e%2e%2fstate.json",
        "/..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/preview/0%00",
        "/preview/٣",
    ],
)
def test_no_file_is_served_by_name(port: int, path: str) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as raw:  # as it is: no client tidies it
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        assert raw.makefile("rb").readline().split()[1] == b"404"


def test_an_address_that_is_none_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as raw:
        raw.sendall(b"GET http://[ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert raw.makefile("rb").readline().split()[1] == b"400"


def test_a_taken_port_is_said(corpus: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"is not free .* give --port 0"):
            serve(corpus, port=taken.getsockname()[1])


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_ends_with_its_children(corpus: Path, end: signal.Signals) -> None:
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from layerflow.cli.main import main; main()"
    command = [sys.executable, "-u", "-c", program, "view", str(corpus), "--serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]
        assert ask(int(url.rstrip("/").rpartition(":")[2]), "/preview/0")[0] == 200
        children = [pid.name for pid in Path("/proc").glob("[0-9]*") if parent(pid) == server.pid]
        assert children
        server.send_signal(end)
        ended = {signal.SIGINT: 0, signal.SIGTERM: 128 + signal.SIGTERM}  # told to, and killed
        assert server.wait(20) == ended.get(end, -end)
    finally:
        server.kill()
        server.communicate()
    until = time.monotonic() + 20
    while any(alive(child) for child in children):
        assert time.monotonic() < until, children
        time.sleep(0.05)


def parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
