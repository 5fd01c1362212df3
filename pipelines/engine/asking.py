"""Questions that a driver has about very many inputs, answered by workers. Nothing is staged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pipelines.engine.staging import InfrastructureError
from pipelines.engine.workers import Pool, Unit, ray_rows


def answers(
    asked: Iterable[Mapping[str, Any]], answer: Callable[[Mapping[str, Any]], Any], pool: Pool
) -> Iterator[Any]:
    """``answer`` of each, in order, by Ray's workers; all of them plain values.

    Raises InfrastructureError for what ``answer`` raises, and where workers die of it.
    """

    def run(item: dict[str, str]) -> dict[str, str]:
        said = {"key": item["key"], "error": "", "told": ""}
        try:
            said["told"] = json.dumps(answer(json.loads(item["payload"])))
        except Exception as error:
            said["error"] = f"{type(error).__name__}: {error}"[:1000]
        return said

    count = 0

    def units() -> Iterator[Unit]:
        nonlocal count
        for one in asked:
            count += 1
            yield Unit(str(count - 1), count - 1, dict(one))

    early: dict[int, Any] = {}
    following = 0
    for row in ray_rows(units(), run, pool):
        if row["error"]:
            raise InfrastructureError(row["error"])
        early[int(row["key"])] = json.loads(row["told"])
        while following in early:
            yield early.pop(following)
            following += 1
    if following < count:
        raise InfrastructureError("a worker died twice when it looked at inputs")
