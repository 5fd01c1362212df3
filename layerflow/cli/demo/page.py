"""The demo's page: one self-contained HTML file with figures, loss curves and contact sheets."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerflow.evaluation import baselines
from layerflow.model.layers import TASKS

if TYPE_CHECKING:
    from layerflow.cli.demo.steps import Demo
    from layerflow.clip import LayeredClip

Rows = list[tuple[str, str]]
SHEET_CLIPS = 6
WIDTH, HEIGHT = 640, 220  # of the loss curves, pixels

COLOURS = ("#1f6fb2", "#c4572b", "#3a8a4d", "#7a4fa3")

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em;
       background: #fafafa; color: #1b1d20 }
table { border-collapse: collapse; margin: .4em 0 1.4em }
td { padding: .15em 1.2em .15em 0; vertical-align: top; border-bottom: 1px solid #e3e3e3 }
td:last-child { font-variant-numeric: tabular-nums }
img, svg { max-width: 100%; height: auto; image-rendering: pixelated }
figure { margin: 1em 0 }
figcaption { color: #555 }
"""


def figures(result: dict[str, Any]) -> list[tuple[str, Rows]]:
    """All figures as titled tables of name and value, for the terminal and the page."""
    return [
        ("Corpora", corpora_rows(result)),
        ("Training", loss_rows(result["losses"])),
        ("Decomposition: alpha IoU on held-out clips", decomposition_rows(result["decomposition"])),
        ("Motion of generated foregrounds", motion_rows(result["motion"])),
        ("Cost", cost_rows(result)),
    ]


def corpora_rows(result: dict[str, Any]) -> Rows:
    rows = []
    for name, job in result["jobs"].items():
        rows.append((name, f"{job['kept']} clips kept, {job['rejected']} rejected"))
        rows += [("", f"{count} x {reason}") for reason, count in list(job["reasons"].items())[:8]]
    ious = [item["iou"] for item in result["mattes"]]
    if ious:
        text = f"mean {np.mean(ious):.3f}, least {min(ious):.3f}, of {len(ious)} mined clips"
        rows.append(("matte IoU with truth", text))
    return rows


def loss_rows(losses: dict[str, dict[str, Any]]) -> Rows:
    return [
        (
            stage,
            f"loss {one['first']:.3f} -> {one['last']:.3f} in {one['steps']} steps, "
            f"{one['seconds_per_step']:.3f} s a step",
        )
        for stage, one in losses.items()
    ]


def decomposition_rows(said: dict[str, Any]) -> Rows:
    rows = [
        (
            f"after stage {stage}",
            f"{one['iou']:.3f}   (MAD {one['mad']:.0f}, "
            f"background behind the subject {one['background_psnr']:.1f} dB)",
        )
        for stage, one in said["models"].items()
    ]
    scores = said["baselines"]
    colour, iou = baselines.best_colour(scores)
    for name in ("empty matte", "mean training matte", baselines.MOTION):
        rows.append((f"baseline: {name}", f"{scores[name]:.3f}"))
    rows.append((f"baseline: best colour threshold ({colour})", f"{iou:.3f}"))
    models = said["models"].values()
    above = bool(models) and all(one["iou"] > max(scores.values()) for one in models)
    rows.append(("above all baselines", "yes" if above else "NO"))
    return rows


def motion_rows(said: dict[str, Any]) -> Rows:
    rows = [
        (
            name,
            f"drift {one['drift']:.2f} px/frame, red-blue {one['red_minus_blue']:+.2f}, "
            f"area {one['area']:.2f}",
        )
        for name, one in said["rows"].items()
    ]
    if said["kept"] is not None:
        rows.append(("motion kept after the content stage (gate 0)", f"{said['kept']:.0%}"))
    return rows


def cost_rows(result: dict[str, Any]) -> Rows:
    rows = [(name, f"{seconds:.1f} s") for name, seconds in result["seconds"].items()]
    rows.append(("", "of this run: what an earlier one had done takes no time"))
    if result["peak_gib"]:
        rows.append(("most memory, all processes", f"{result['peak_gib']:.2f} GiB"))
    return rows


def write_page(demo: Demo, result: dict[str, Any]) -> Path:
    """Write ``OUT/report.html``; returns its path."""
    parts = ["<h1>LayerFlow demo</h1>"]
    for title, rows in figures(result):
        parts += [f"<h2>{html.escape(title)}</h2>", table(rows)]
        if title == "Training":
            parts.append(curves({k: v["curve"] for k, v in result["losses"].items()}))
        if title.startswith("Decomposition"):
            scores = result["decomposition"]["baselines"].items()
            every = [(name, f"{iou:.3f}") for name, iou in sorted(scores, key=lambda s: -s[1])]
            parts.append(f"<details><summary>all baselines</summary>{table(every)}</details>")
    parts.append("<h2>Samples of the finished model: one held-out clip, four tasks</h2>")
    for task in TASKS:
        contact = demo.out / "samples" / task / "contact.png"
        parts.append(picture(contact.read_bytes(), task))
    parts.append("<h2>Stage by stage</h2>")
    for sheet in sorted((demo.out / "sheets").glob("*.png")):
        parts.append(picture(sheet.read_bytes(), sheet.stem))
    parts.append("<h2>Clips</h2>")
    for name in ("mined", "pasted", "held-out", "stills", "neutral"):
        if data := corpus_sheet(demo.corpus(name)):
            parts.append(picture(data, name))
    body = "\n".join(parts)
    path = demo.out / "report.html"
    path.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>LayerFlow demo</title>\n<style>{STYLE}</style></head>\n"
        f"<body>{body}</body></html>\n",
        encoding="utf-8",
    )
    return path


def table(rows: Rows) -> str:
    cells = (f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return "<table>" + "".join(cells) + "</table>"


def picture(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f"<figure><figcaption>{html.escape(caption)}</figcaption>"
        f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"></figure>'
    )


def curves(series: dict[str, Sequence[float]]) -> str:
    """Loss curves of the stages side by side, as inline SVG on one vertical scale from 0."""
    top = max((max(values) for values in series.values() if values), default=1.0)
    points = max(1, sum(len(values) for values in series.values()))
    parts, x = [], 40.0
    for level in np.linspace(0, top, 5):
        y = HEIGHT - 20 - level / top * (HEIGHT - 40)
        parts.append(f'<line x1="40" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="2" y="{y + 4:.1f}" font-size="11">{level:.2f}</text>')
    for index, (stage, values) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        width = len(values) / points * (WIDTH - 40)
        xs = np.linspace(x, x + width, len(values))
        ys = HEIGHT - 20 - np.asarray(values) / top * (HEIGHT - 40)
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        name = html.escape(stage)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 4}" font-size="12" fill="{colour}">{name}</text>'
        )
        x += width
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">{"".join(parts)}</svg>'


def corpus_sheet(path: Path) -> bytes:
    """A contact sheet of a corpus' clips, PNG; empty for an empty corpus."""
    from layerflow.corpus.table import Corpus
    from layerflow.media.cells import encode_png
    from layerflow.media.contact_sheet import contact_sheet

    corpus = Corpus.open(path)
    indices = sorted({int(i) for i in np.linspace(0, len(corpus) - 1, SHEET_CLIPS)})
    clips: list[LayeredClip] = [corpus.clip(i) for i in indices] if len(corpus) else []
    return encode_png(contact_sheet(clips, height=72)) if clips else b""
