"""One self-contained HTML page of clips: layers that play, scores, rejections.

The page makes no request: style, script, rows and previews are inside, and its content security
policy forbids everything else. Text from a corpus reaches the page as JSON only and is shown with
``textContent``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.corpus.scores import PRESETS, SCORES, meaning
from layerflow.corpus.stats import general_reason
from layerflow.files import write_bytes
from layerflow.media.cells import MediaError, encode_png
from layerflow.media.contact_sheet import contact_sheet, describe
from layerflow.media.frame_rate import evenly
from layerflow.media.sandbox import contained_map
from layerflow.outputs import local_output
from pipelines.view.source import (
    ClipSource,
    Requests,
    open_source,
    preview_handler,
    read_preview,
)

MAX_PREVIEW_BYTES = 24 << 20
MAX_REJECTED = 1000
MAX_TEXT = 4000
SHEET_CLIPS = 12
BINS = 24
MAX_SOURCES = 200
SCRIPTS = ("player.js", "detail.js", "care.js", "window.js", "report.js")


def write_report(
    path: Path | str,
    out: Path,
    *,
    limit: int = 48,
    workers: int | None = None,
    model: Path | None = None,
    against: Path | None = None,
) -> list[Path]:
    """Write the page to ``out`` and a contact sheet beside it; returns both paths.

    path: a corpus, a published one, latents (that ``model`` decodes, if there is one), samples; a
    URL of a corpus that is read by ranges, and gets no contact sheet. against: the same clips of
    another source, shown beside them.
    limit: clips with previews, taken evenly over the rows, also bounded by 24 MiB of previews.
    Histograms, counts and reasons are of all rows. workers: preview processes; 0: this process.
    Raises ValueError when ``path`` is none of these.
    """
    out = local_output(out)
    source = open_source(path, model, against)
    rows = list(source.rows())
    chosen = evenly(len(rows), limit)
    height = 96 if len(chosen) > 24 else 144
    workers = os.cpu_count() or 1 if workers is None else workers
    requests = Requests(source, chosen, height)
    clips, media = [], []
    total = 0
    for index, answer in zip(
        chosen,
        contained_map(preview_handler(path, model, against), Path(path), requests, workers),
        strict=True,
    ):
        row = shortened(rows[index])
        if isinstance(answer, MediaError):
            clips.append({**row, "problem": str(answer)[:MAX_TEXT]})
            media.append(b"")
            continue
        preview = read_preview(answer)
        total += len(preview.media)
        if total > MAX_PREVIEW_BYTES:
            break
        clips.append({**row, "preview": preview.plain()})
        media.append(preview.media)
    data = {"mode": "static", **overview(source, rows), "clips": clips}
    data["rejected"] = [rejected_row(row) for row in islice(source.rejected(), MAX_REJECTED)]
    write_bytes(out, page(data, media).encode())
    if isinstance(path, str):
        return [out]
    sheet = make_sheet(path, len(rows), workers, model)
    if not sheet:
        return [out]
    write_bytes(out.with_suffix(".png"), sheet)
    return [out, out.with_suffix(".png")]


def rejected_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the rejected table as the page wants it; ``general`` is what reasons count by."""
    return shortened({**row, "general": general_reason(row["stage"], row["reason"])})


def shortened(value: Any) -> Any:
    """The same value with every text cut to 4000 letters, so that no text fills the page."""
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + " ... (cut)"
    if isinstance(value, dict):
        return {key: shortened(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shortened(part) for part in value[:100]]
    return value


def overview(source: ClipSource, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What the page says about all rows: name, counts, score histograms, rejection reasons."""
    kinds: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    scores: dict[str, list[float]] = {}
    for row in rows:
        kinds[row["kind"]] += 1
        sources[shortened(row["source"])] += 1
        if "licence" in row:
            licences[shortened(row.get("licence") or "not stated")] += 1
        for name, value in row["scores"].items():
            scores.setdefault(name, []).append(value)
    reasons = Counter(
        shortened(general_reason(row["stage"], row["reason"])) for row in source.rejected()
    )
    return {
        "name": source.name,
        "note": getattr(source, "note", ""),
        "total": sum(kinds.values()),
        "kinds": dict(kinds),
        "licences": dict(licences.most_common(20)),
        "sources": dict(sources.most_common(MAX_SOURCES)),
        "against": getattr(source, "against", ""),
        "limits": gate_limits(),
        "histograms": {
            name: {**histogram(values), "says": meaning(name)}
            for name, values in sorted(scores.items())
        },
        "reasons": dict(reasons.most_common(100)),
        "rejected_total": sum(reasons.values()),
    }


def gate_limits() -> dict[str, dict[str, list[float | None]]]:
    """What each preset of the quality gate accepts: score -> least and greatest value, None where
    there is no such end."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for preset in PRESETS:
        limits = {score.name: score.limits(preset) for score in SCORES}
        found[preset] = {
            name: [end if math.isfinite(end) else None for end in pair]
            for name, pair in limits.items()
            if isinstance(pair, tuple)
        }
    return found


def histogram(values: Sequence[float]) -> dict[str, Any]:
    """Counts in 24 equal bins over the 0.5 to 99.5 percentile; the ends take what is outside."""
    array = np.asarray(values, np.float64)
    low, high = (float(v) for v in np.percentile(array, (0.5, 99.5)))
    if not high > low:
        low, high = float(array.min()), float(max(array.max(), array.min() + 1e-6))
    counts, _ = np.histogram(np.clip(array, low, high), bins=BINS, range=(low, high))
    return {"low": low, "high": high, "median": float(np.median(array)), "bins": counts.tolist()}


def page(data: dict[str, Any], media: Sequence[bytes] = ()) -> str:
    """The HTML page; ``media[i]`` is the preview of ``data["clips"][i]``."""
    script = "".join(map(_asset, SCRIPTS))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    connect = "'self'" if data["mode"] == "serve" else "'none'"
    blocks = "\n".join(
        f'<script type="text/plain" id="media-{index}">{base64.b64encode(part).decode()}</script>'
        for index, part in enumerate(media)
        if part
    )
    parts = {
        "policy": f"default-src 'none'; img-src data: blob:; media-src data: blob:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'",
        "style": _asset("report.css"),
        "script": script,
        "data": embedded(data),
        "media": blocks,
    }
    html = _asset("report.html")
    for name, text in parts.items():
        before, mark, after = html.partition(f"<!--{name}-->")
        assert mark, f"the page has no place for {name}"
        html = before + text + after
    return html


def embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end its script element or start a comment in it, whatever it holds."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (resources.files("pipelines.view") / "assets" / name).read_text(encoding="utf-8")


def sheet_maker(path: Path, model: Path | None = None) -> Callable[[bytes], bytes]:
    """A handler for ``layerflow.media.sandbox``: indices of clips in, a contact sheet (PNG) out."""
    source = open_source(path, model)

    def answer(request: bytes) -> bytes:
        clips, labels = [], []
        wanted = json.loads(request)
        among = set(wanted)
        rows = {index: row for index, row in enumerate(source.rows()) if index in among}
        for index in wanted:
            if rows[index].get("flat"):  # a sheet shows foregrounds over a checkerboard
                continue
            try:
                clip = replace(source.clip(index), prompts=rows[index]["prompts"])
                shown = source.stack(index) or clip
            except (MediaError, ValueError):
                continue
            few = dict(list(rows[index]["scores"].items())[:8])
            clips.append(shown)
            labels.append(describe(clip, f"{rows[index]['id']}  {rows[index]['source']}", few))
        return encode_png(contact_sheet(clips, labels)) if clips else b""

    return answer


def make_sheet(path: Path, count: int, workers: int, model: Path | None = None) -> bytes:
    """A contact sheet of at most 12 of the ``count`` clips of ``path``; empty when none decodes."""
    request = json.dumps(evenly(count, SHEET_CLIPS)).encode()
    maker = partial(sheet_maker, model=model)
    answer = next(contained_map(maker, path, [request], min(1, workers)))
    return b"" if isinstance(answer, MediaError) else answer
