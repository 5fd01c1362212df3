"""``layerflow export``: the clips of a corpus as files, with their media as they are stored.

Nothing is decoded or coded again. Moving clips come first, then stills, each in the order of the
corpus. What was interrupted goes on behind the last piece that is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerflow.corpus.derive import AnyCorpus, Selection, selected, sound
from layerflow.corpus.stats import small_rows
from layerflow.corpus.validate import refuse_unsound
from layerflow.documents import read_json
from layerflow.files import publish_folder, sweep, write_json, write_text
from layerflow.nearest import did_you_mean
from layerflow.outputs import free_output, local_output
from pipelines.export.containers import FORMATS, HEAD, PIECES
from pipelines.export.sample import FORMAT
from pipelines.publish.card import licence_table, recorded


@dataclass(frozen=True)
class Exported:
    """What was written: clips, pieces (tar shards or folders), bytes."""

    out: Path
    clips: int
    pieces: int
    bytes: int


def run_export(
    corpus: AnyCorpus,
    out: str | Path,
    *,
    format: str,
    selection: Selection | None = None,
    quiet: bool = True,
) -> Exported:
    """Write the wanted clips of a corpus to the folder ``out``, which appears whole.

    format: of ``FORMATS``. The same request on a finished ``out`` does nothing. Raises ValueError
    for another format, for a broken corpus, where no clip is wanted, and when ``out`` holds
    something else.
    """
    if format not in FORMATS:
        raise ValueError(f"{format!r} is no format; {did_you_mean(format, FORMATS)}{[*FORMATS]}")
    selection = selection or Selection()
    out = local_output(out)
    parts = [corpus.identity(), format, selection.options(), FORMAT]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    if (out / HEAD).is_file() and read_json(out / HEAD).get("request") == key:
        return _exported(out)
    out = free_output(out)
    refuse_unsound(corpus, ids=True)
    building = out.with_name(f".{out.name}.{key[:12]}.building")
    building.mkdir(parents=True, exist_ok=True)
    sweep(building)
    _write_pieces(corpus, building, format, selection, quiet)
    done = _exported(building)
    if not done.clips:
        raise ValueError("no clip is as asked for")
    wanted = (row for row in small_rows(corpus) if selection.refuses(row) is None)
    write_text(building / "LICENSE.md", licence_table(wanted))
    head = {
        "export": FORMAT,
        "format": format,
        "request": key,
        "clips": done.clips,
        "selection": selection.options(),
        "made_from": recorded(corpus.info),
    }
    write_json(building / HEAD, head)
    publish_folder(building, out)
    return _exported(out)


def _exported(folder: Path) -> Exported:
    told = _told(folder)
    clips, size = (sum(piece[name] for piece in told) for name in ("clips", "bytes"))
    return Exported(folder, clips, len(told), size)


def _told(folder: Path) -> list[dict[str, Any]]:
    """The pieces that are complete: a line that is cut off is of none."""
    path = folder / PIECES
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def _write_pieces(
    corpus: AnyCorpus, building: Path, format: str, selection: Selection, quiet: bool
) -> None:
    from rich.progress import Progress

    name_of, opened = FORMATS[format]
    told = _told(building)
    write_text(building / PIECES, "".join(json.dumps(piece) + "\n" for piece in told))
    done, clips = Counter(piece["stills"] for piece in told), Counter[bool]()
    for piece in told:
        clips[piece["stills"]] += piece["clips"]
    with Progress(disable=quiet, transient=True) as progress:
        task = progress.add_task("clips", total=len(corpus), completed=clips.total())
        for stills in (False, True):
            rows = _rows(corpus, selection, stills, clips[stills])
            row = next(rows, None)
            while row is not None:
                name = name_of(stills, done[stills])
                with opened(building / name) as piece:
                    while row is not None and not piece.full:
                        piece.put(row)
                        progress.advance(task)
                        row = next(rows, None)
                _tell(building, name=name, stills=stills, clips=piece.clips, bytes=piece.bytes,
                      sha256=piece.sha256)  # fmt: skip
                done[stills] += 1


def _tell(building: Path, **piece: Any) -> None:
    write_text(building / PIECES, (building / PIECES).read_text() + json.dumps(piece) + "\n")


def _rows(
    corpus: AnyCorpus, selection: Selection, stills: bool, skip: int
) -> Iterator[dict[str, Any]]:
    """Wanted rows of moving clips or of stills, in order, behind the first ``skip``."""
    left = skip

    def wanted(_: int, row: dict[str, Any]) -> bool:
        nonlocal left
        if (row["kind"] == "image") is not stills or selection.refuses(row) is not None:
            return False
        left -= 1
        return left < 0

    for row in selected(corpus, wanted):
        yield sound(corpus, row)
