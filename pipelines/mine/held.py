"""What corpora hold already: signatures of their clips, so that mining does not repeat them.

Each unit looks at some rows of one version of a corpus. What is compared is what is stored: the
blended layer, of clips that have the shape of those to come. Rows that do not decode are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from layerflow.clip import BLENDED
from layerflow.corpus.published import fetched, open_corpus
from layerflow.corpus.row_cells import read_cells
from layerflow.locations import clean_uri
from layerflow.media.cells import MediaError
from pipelines.engine.jobs import Unit, unit_key
from pipelines.mine.duplicates import signature

ROWS = 64  # of a unit
SAME_SHAPE = 0.02  # relative difference of width / height up to which clips may show the same
COLUMNS = (BLENDED, "origin", "kind", "num_frames", "height", "width")
HELD = "held"
"""What tells a payload of these units from that of a video: the corpus, at its version."""


def held_units(corpora: Iterable[str], own: str | None = None) -> list[Unit]:
    """The units that look at corpora. own: the one that is to grow, whose clips are of
    earlier inputs. Raises ValueError where there is none."""
    units: list[Unit] = []
    for where in dict.fromkeys([*corpora, *([own] if own else [])]):
        corpus = open_corpus(fetched(where))
        for start in range(0, len(corpus), ROWS):
            key = unit_key(HELD, corpus.identity(), start)
            end = min(start + ROWS, len(corpus))
            payload = {HELD: corpus.address, "rows": [start, end], "own": where == own}
            payload["name"] = on_record(corpus.address)
            units.append(Unit(key, len(units), payload))
    return units


def look_at_held(payload: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Row, signature (hex digits) and input of clips with the shape of ``size``, height and width.

    Their input is the corpus, with which windows of all inputs are compared; of the corpus that is
    to grow it is their video, since windows of one video are never compared.
    """
    corpus = open_corpus(payload[HELD])
    found: list[tuple[int, str, str]] = []
    for index in range(*payload["rows"]):
        small = corpus.row(index, COLUMNS[1:])
        if small["kind"] == "image" or not alike(small, size):
            continue
        try:
            frames = read_cells(corpus.row(index, COLUMNS), (BLENDED,))[BLENDED]
        except MediaError:
            continue
        name = small["origin"]["uri"] if payload["own"] else HELD
        found.append((index, signature(frames).hex(), name))
    return {"rows": found}


def on_record(address: str) -> str:
    """A corpus in a rejected row: its URL without secrets, or the last part of its path."""
    return clean_uri(address) if "://" in address else PurePath(address).name


def alike(row: dict[str, Any], size: tuple[int, int]) -> bool:
    ratio = row["width"] * size[0] / max(1, row["height"] * size[1])
    return bool(abs(ratio - 1) <= SAME_SHAPE)
