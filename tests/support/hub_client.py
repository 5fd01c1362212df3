"""Runs publications and downloads for tests, in a process of its own: the Hub's address and token
are read from the environment when ``huggingface_hub`` is imported. JSON lines in, JSON lines out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def digest(rows: Any) -> list[str]:
    """A checksum of each row, every column included that has a value: a column of the toolkit that
    no row fills is not published."""
    found = []
    for row in rows:
        plain = repr(sorted((name, value) for name, value in row.items() if value is not None))
        found.append(hashlib.sha256(plain.encode()).hexdigest())
    return found


def die_at(number: int) -> None:
    """Kill this process when it makes its ``number``-th Parquet file."""
    from pipelines.publish import parts

    write, calls = parts.write_parquet, itertools.count(1)

    def written(*arguments: Any) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)

    parts.write_parquet = written


def answer(request: dict[str, Any]) -> Any:
    if "publish" in request:
        from pipelines.publish import files, hub
        from pipelines.publish.job import run_publish

        files.SHARD_BYTES = request["shard"]
        hub.BATCH_FILES = request.get("batch", hub.BATCH_FILES)
        hub.SWITCH_ENTRIES = request.get("switch", 300)
        options = files.PublishOptions(**request["options"])
        if request.get("death"):
            die_at(request["death"])
        how = {"workers": 0, "quiet": True, **request.get("how", {})}
        if "work" in request:
            how["work"] = Path(request["work"])
        return run_publish(request["publish"], options, **how)
    if "open" in request:
        from layerflow.corpus.published import open_corpus

        return digest(open_corpus(request["open"]).rows(request.get("columns")))
    if "encode" in request:
        from pipelines.encode.job import run_encode

        options = {**request["options"], "size": tuple(request["options"]["size"])}
        summary = run_encode(request["encode"], **options, workers=0, quiet=True)
        return [summary.clips, summary.encoded, summary.rejected]
    if "filter" in request:
        from layerflow.corpus.derive import filter_corpus
        from layerflow.corpus.published import open_corpus

        made = filter_corpus(
            open_corpus(request["filter"]), Path(request["out"]), where=request["where"]
        )
        return [made.rows, made.left_out]
    import datasets

    from layerflow.corpus.published import local_row

    datasets.disable_progress_bars()
    columns = request.get("columns")
    rows = datasets.load_dataset(
        request["load"], split="train", streaming=request["streaming"],
        revision=request.get("revision"),
        **({"columns": columns} if columns else {}),
    )  # fmt: skip
    return digest(map(local_row, rows))


if __name__ == "__main__":
    for line in sys.stdin:
        try:
            result = {"value": answer(json.loads(line))}
        except ValueError as error:
            result = {"error": str(error)}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)
