"""Fixtures of the jobs' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipelines.captions.captioner import make_captioner
from tests.support.captions import Endpoint


@pytest.fixture
def endpoint() -> Iterator[Callable[[Callable[[str, int], Any]], Endpoint]]:
    made: list[Endpoint] = []

    def start(reply: Callable[[str, int], Any]) -> Endpoint:
        made.append(Endpoint(reply))
        return made[-1]

    yield start
    make_captioner.cache_clear()
    for one in made:
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """The Ray that jobs start, for all tests of this file that need one; ended after them."""
    from pipelines.engine.cluster import stop_ray

    yield
    stop_ray()
