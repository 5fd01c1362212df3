"""A corpus of clips whose sources are known, made by a job, and what it leaves on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.corpus.latents import LatentsWriter, clip_row, prompt_key, prompt_row
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus, encode_row, origin, rejected_row
from pipelines.engine.jobs import Outcome, Summary, Unit, make_recipe, run_job, unit_key
from tests.support.corpora import moving_clip

RECIPE = make_recipe("pasted", {"size": "32x48", "out": "x"}, 1)
OTHER = make_recipe("pasted", {"size": "32x48", "out": "x", "seed": 7}, 1)
SECRET = "people/ann-b.mp4"
"""The source that the tests remove."""
Row = dict[str, Any]


def sha(name: str) -> str:
    """A content hash of a source, by a name."""
    return name.encode().hex().ljust(64, "0")[:64]


def clip(
    number: int,
    uri: str,
    parents: Sequence[str] = (),
    licence: str | None = "CC-BY-4.0",
    **how: Any,
) -> Row:
    """A row of source ``uri``; with parents it is a pasted one. how: kind; content: whose sha."""
    kind = how.get("kind", "pasted" if parents else "mined")
    return encode_row(
        moving_clip(number, kind),
        id=f"{number:016x}",
        origin=origin(
            uri, sha(how.get("content", uri)), start=float(number), end=number + 0.5,
            licence=licence, attribution=f"maker of {uri}", parents=parents,
        ),
        quality={"flicker": number / 100},
        recipe="r",
    )  # fmt: skip


def story() -> list[Row]:
    """Clips 1, 3, 4 and 6 are of ``SECRET``: mined, its copy, a background, a paste of a paste."""
    return [
        clip(0, "a.mp4"),
        clip(1, SECRET),
        clip(2, "c.mp4", ["c.mp4", "d.mp4"], "CC-BY-4.0; CC-BY-ND-4.0"),
        clip(3, "copy.mp4", content=SECRET),
        clip(4, "a.mp4", [f"a.mp4#{0:016x}", f"{SECRET}#{1:016x}"]),
        clip(5, "e.png", licence="CC BY ND 4.0", kind="image"),
        clip(6, "a.mp4", [f"a.mp4#{4:016x}", "f.mp4"]),
        clip(7, "g.mp4", ["g.mp4", "h.mp4"], None),
    ]


OF_SECRET = [1, 3, 4, 6]


def make(out: Path | str, rows: Sequence[Row], recipe: Any = RECIPE, **how: Any) -> Summary:
    """A job of one unit a row; what it refuses is of ``SECRET``, of ``a.mp4`` or a duplicate."""
    units = [
        Unit(unit_key(row["id"], recipe.hash), place, {"place": place, "uri": row["origin"]["uri"]})
        for place, row in enumerate(rows)
    ]

    def work(payload: dict[str, Any]) -> Outcome:
        row = rows[payload["place"]]
        about = {"kind": row["kind"], "recipe": "r"}
        refused = [rejected_row(row["origin"]["uri"], "gate", "flicker 0.3 over 0.1", **about)]
        return Outcome(rows=[row], rejected=refused if row["kind"] == "mined" else [])

    given: dict[str, Any] = {"recipe": recipe, "workers": 0, "quiet": True} | how
    return run_job(units, work, out=out, **given)


def numbers(ids: Sequence[str]) -> list[int]:
    return [int(id, 16) for id in ids]


def bytes_of(folder: Path | str) -> bytes:
    """Everything in a folder, here or in an object store."""
    store = Store(folder)
    return b"\n".join(store.read(name) for name in sorted(store.names()))


def latents_of(corpus: Path, out: Path) -> Path:
    """Latents of a corpus, with two variants of each clip, and prompts of their own."""
    moments = dict.fromkeys(
        ("foreground", "alpha", "background", "blended"), np.zeros((2, 1, 2, 2), np.float32)
    )
    rows, texts = [], set()
    for row in Corpus.open(corpus).rows():
        keys = {}
        for place, layer in enumerate(("foreground", "background", "blended")):
            text = f"{place}, {row[f'{layer}_prompt']}"
            texts.add(text)
            keys[f"{layer}_prompt"] = prompt_key(text)
        about = {"source": row["id"], "content": "c", "kind": row["kind"], "alpha_kind": "soft"}
        about |= {"origin_group": "g", "num_frames": 1, "height": 4, "width": 4, "fps": 8.0}
        rows += [clip_row(moments, id=row["id"] + end, **about, **keys) for end in ("", "-f")]
    with LatentsWriter(out, {"format_version": 1, "text_shape": [1, 2]}) as writer:
        writer.clips(rows)
        writer.prompts(prompt_row(text, np.zeros((1, 2))) for text in sorted(texts))
        (writer.folder / "rejected.jsonl").write_text(f'{{"id": "{6:016x}", "reason": "short"}}\n')
    return out
