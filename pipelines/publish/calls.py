"""Calls to the Hugging Face Hub: asked again where that helps, explained where it does not.

The token comes from where ``huggingface_hub`` looks for it; it is never printed or stored.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ATTEMPTS = 6
LONGEST_WAIT = 120.0
BUSY, LONGEST_LIMIT, LONGEST_QUEUE = 429, 3600.0, 24 * 3600.0  # a rate limit may last
AGAIN = "run the same command again: what is already there is not sent again"
PASSING = frozenset({408, 409, 422, 425, 429, 500, 502, 503, 504})
MOVED = 412
Result = TypeVar("Result")


class MovedError(ValueError):
    """Somebody else has changed the branch meanwhile."""


def hub_api() -> HfApi:
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set; unset it to publish, or use --dry-run DIR")
    if get_token() is None:
        raise ValueError("there is no Hub token: run `hf auth login` or set HF_TOKEN")
    return HfApi(library_name="layerflow-toolkit")


def steadily(call: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Call the Hub, again after a growing wait when it is busy, failing or out of reach: six times
    in all, and for a day where it says that there were too many requests.

    Raises ValueError that says what the Hub answered and what to do.
    """
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError

    attempt, waited = 0, 0.0
    while True:
        try:
            return call(*arguments, **options)
        except (HfHubHTTPError, TransportError, ConnectionError, RuntimeError) as raised:
            # an upload wraps what happened in a RuntimeError
            error = raised.__cause__ if type(raised) is RuntimeError else raised
            status, asked = 0, None
            if isinstance(error, HfHubHTTPError):
                if error.response is not None:
                    status = error.response.status_code
                    asked = error.response.headers.get("Retry-After")
                problem, passing = _explained(status, error), status in PASSING
                if status == MOVED:
                    raise MovedError(problem) from raised
            elif isinstance(error, TransportError | ConnectionError):
                problem, passing = f"the Hub cannot be reached: {error}; {AGAIN}", True
            else:
                raise
            attempt += 1
            limited = status == BUSY and waited < LONGEST_QUEUE
            if not passing or (attempt >= ATTEMPTS and not limited):
                raise ValueError(problem) from raised
            waited += _wait(attempt, asked, LONGEST_LIMIT if limited else LONGEST_WAIT)


def _wait(attempt: int, asked: str | None, longest: float) -> float:
    """Seconds that were waited: those that the Hub asked for, or more each time."""
    seconds = min(LONGEST_WAIT, 2.0**attempt)
    if asked and asked.isdigit():
        seconds = min(longest, max(1.0, float(asked)))
    time.sleep(seconds * (1 + 0.1 * random.random()))
    return seconds


def _explained(status: int, error: Exception) -> str:
    advice = {
        401: "the token is not valid: run `hf auth login` again",
        403: "the token may not write there: it needs write access to this namespace",
        404: "there is no such repository or branch, or the token may not see it",
    }.get(status, AGAIN)
    text = re.sub(r"hf_[A-Za-z0-9]+", "hf_...", str(error).strip())
    return f"the Hub answered {status}: {text.splitlines()[0][:300] if text else ''}; {advice}"
