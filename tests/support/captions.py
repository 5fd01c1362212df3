"""A captioner's endpoint that a test serves, and layers to describe."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

GOOD = {
    "foreground": "A brown dog with a red collar trots to the left, its tail up.",
    "background": "A sunny lawn in front of a brick wall; the camera stands still.",
    "blended": "A brown dog trots over a sunny lawn in front of a brick wall.",
}


def clip_layers() -> dict[str, Any]:
    layers: dict[str, Any] = {
        "foreground": np.full((6, 40, 60, 3), 255, np.uint8),
        "background": np.full((6, 40, 60, 3), 40, np.uint8),
        "blended": np.full((6, 40, 60, 3), 90, np.uint8),
        "alpha": np.zeros((6, 40, 60), np.uint8),
    }
    layers["alpha"][:, 10:30, 20:40] = 255
    return layers


def layer_of(text: str) -> str:
    """Which of our questions a request is."""
    if "Name the subject" in text:
        return "name"
    for layer, mark in (("foreground", "only the subject"), ("background", "the place: what")):
        if mark in text:
            return layer
    return "blended"


class Endpoint:
    """An OpenAI-compatible server. ``reply`` gives the text, a status, or raw bytes."""

    def __init__(self, reply: Callable[[str, int], Any]) -> None:
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.together, self.most = 0, 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.keys.append(self.headers.get("Authorization"))
                good = self.headers.get("Authorization") in (None, "Bearer sesame")
                self.finish_with(200 if good else 401, b'{"data": []}')

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.seen.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    outer.together += 1
                    outer.most = max(outer.most, outer.together)
                    number = len(outer.seen)
                answer = reply(body["messages"][0]["content"][-1]["text"], number)
                with lock:
                    outer.together -= 1
                if isinstance(answer, int):
                    self.finish_with(answer, b"{}")
                elif isinstance(answer, bytes):
                    self.finish_with(200, answer)
                else:
                    message = {"choices": [{"message": {"content": answer}}]}
                    self.finish_with(200, json.dumps(message).encode())

            def finish_with(self, status: int, data: bytes) -> None:
                self.send_response(status)
                if status in (301, 302):
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def good_reply(text: str, number: int) -> Any:
    layer = layer_of(text)
    return "dog" if layer == "name" else GOOD[layer]
