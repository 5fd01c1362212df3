"""What a corpus looks like in a notebook: a line of facts over a sheet of its first clips."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

from layerflow.media.cells import encode_png
from layerflow.media.contact_sheet import contact_sheet, describe

if TYPE_CHECKING:
    from layerflow.clip import LayeredClip
    from layerflow.corpus.table import Corpus

SHOWN = 4  # clips on the sheet


def as_html(corpus: Corpus) -> str:
    """HTML that needs nothing from elsewhere. A clip that cannot be read is named, not shown."""
    clips: list[LayeredClip] = []
    labels, damaged = [], []
    for index in range(min(SHOWN, len(corpus))):
        row = corpus.row(index, ["id", "quality"])
        try:
            clip = corpus.clip(index)
        except ValueError as error:
            damaged.append(f"{row['id']} cannot be read: {error}")
            continue
        clips.append(clip)
        labels.append(describe(clip, f"[{index}] {row['id']}", _telling(row["quality"])))
    lines = [f"<b>{html.escape(corpus.address)}</b>: {len(corpus)} clips"]
    lines += [html.escape(line) for line in damaged]
    if clips:
        picture = base64.b64encode(encode_png(contact_sheet(clips, labels))).decode()
        lines.append(f'<img alt="the first clips" src="data:image/png;base64,{picture}">')
    return "<br>\n".join(lines)


def _telling(scores: dict[str, float | None] | None) -> dict[str, float | None]:
    """The few scores that fit on a line."""
    known = {name: value for name, value in (scores or {}).items() if value is not None}
    return dict(list(known.items())[:4])
