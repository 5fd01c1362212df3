"""What one row of a corpus costs by its number of rows: ``python bench/corpus_rows.py [ROWS ...]``.

Rows hold four media cells of 2 kB, so that what is measured is finding a row, not reading pixels.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from layerflow.clip import LAYERS, PROMPTED
from layerflow.corpus.columns import SCHEMA
from layerflow.corpus.table import Corpus, origin, quality_cell
from layerflow.corpus.writer import write_table

CELL_BYTES = 2000
READS = 2000


def make_rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows of random media cells: no clip that decodes."""
    draw = random.Random(0)
    for index in range(count):
        yield {
            "id": f"{index:016x}",
            "kind": "mined",
            **{layer: draw.randbytes(CELL_BYTES) for layer in LAYERS},
            **{f"{layer}_prompt": f"clip {index}" for layer in PROMPTED},
            **{"num_frames": 16, "height": 480, "width": 720, "fps": 8.0},
            **{"alpha_kind": "soft", "background_kind": "real"},
            "origin": origin(f"videos/{index % 97}.mp4", f"{index:064x}"),
            "quality": quality_cell({"flicker": 0.01}),
            "recipe": "0123456789abcdef",
        }


def main() -> None:
    for count in [int(text) for text in sys.argv[1:]] or [2000, 40_000]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "corpus"
            write_table(path, make_rows(count), SCHEMA)
            started = time.perf_counter()
            corpus = Corpus.open(path)
            length = len(corpus)
            opened = time.perf_counter() - started
            places = random.Random(1).choices(range(length), k=READS)
            for columns in (None, ["id", "kind", "origin"]):
                started = time.perf_counter()
                for place in places:
                    assert corpus.row(place, columns)["id"] == f"{place:016x}"
                each = (time.perf_counter() - started) / READS
                what = "whole" if columns is None else "small"
                print(f"{count} rows: open {opened * 1e3:.1f} ms, {what} row {each * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
