"""A captioner behind any OpenAI-compatible chat endpoint (vLLM, Ray Serve LLM and others).

The key is read from an environment variable when a request is made and is nowhere else: not in
options, recipes, messages or logs. Redirects are refused, since they would carry it elsewhere.
"""

from __future__ import annotations

import base64
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2

from layerflow.clip import U8
from manifests.mine import Captions
from pipelines.captions.request import CaptionError, Request

MAX_ANSWER_BYTES = 1 << 20
MAX_WAIT = 60.0  # seconds, also for a server that asks for more
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class EndpointCaptioner:
    """Sends pictures as base64 JPEG to ``options.url`` + ``/chat/completions``.

    Up to ``options.concurrency`` requests are under way at a time. Timeouts, refused connections
    and the statuses 408, 409, 425, 429, 500, 502, 503, 504 are tried again ``options.attempts``
    times, with waits that double (or the server's ``Retry-After``, 60 s at most).
    Raises ValueError for an address that is not http(s) or holds credentials.
    """

    licence = "as the endpoint's model"

    def __init__(self, options: Captions, first_wait: float = 1.0) -> None:
        self.name = options.model
        self._options = options
        self._url = (options.url or "").rstrip("/")
        self._first_wait = first_wait
        self._opener = urllib.request.build_opener(_NoRedirect)

    def check(self) -> None:
        """Ask for the list of models. Raises ValueError when nobody answers or the key is bad."""
        if self._options.key_env and not os.environ.get(self._options.key_env):
            raise ValueError(
                f"captions: the environment variable {self._options.key_env} (key_env) is not set"
            )
        try:
            self._send("/models", None)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ValueError(f"captions: {self._url} refused the key ({error.code})") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"captions: {self._url} does not answer: {_why(error)}") from None

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """See ``Captioner``."""
        with ThreadPoolExecutor(max(1, self._options.concurrency)) as pool:
            return list(pool.map(self._one, requests))

    def _one(self, request: Request) -> str:
        body = json.dumps(
            {
                "model": self._options.model,
                "temperature": 0,
                "seed": 0,
                "max_tokens": 2 * self._options.max_tokens,
                "messages": [{"role": "user", "content": _content(request)}],
            }
        ).encode()
        reason = ""
        for attempt in range(self._options.attempts):
            wait = min(MAX_WAIT, self._first_wait * 2**attempt * random.uniform(0.5, 1))
            try:
                return _text_of(self._send("/chat/completions", body))
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}"
                if error.code not in _AGAIN:
                    break
                wait = _asked_wait(error) or wait
            except (OSError, ValueError) as error:  # timeouts, resets, answers that are not JSON
                reason = _why(error)
            if attempt + 1 < self._options.attempts:
                time.sleep(wait)
        raise CaptionError(f"{self._url} gave no caption: {reason}")

    def _send(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._options.key_env and (key := os.environ.get(self._options.key_env)):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url + path, body, headers)
        with self._opener.open(request, timeout=self._options.timeout) as response:
            data = response.read(MAX_ANSWER_BYTES + 1)
        if len(data) > MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        return json.loads(data)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _content(request: Request) -> list[dict[str, Any]]:
    pictures = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_jpeg(picture)}"}}
        for picture in request.pictures
    ]
    return [*pictures, {"type": "text", "text": request.text}]


def _jpeg(picture: U8) -> str:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return base64.b64encode(data.tobytes()).decode()


def _text_of(answer: Any) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("an answer without choices[0].message.content") from None
    return text if isinstance(text, str) else ""


def _asked_wait(error: urllib.error.HTTPError) -> float | None:
    value = error.headers.get("Retry-After", "") if error.headers else ""
    return min(MAX_WAIT, float(value)) if value.isdigit() else None


def _why(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(error).__name__}: {reason}"
