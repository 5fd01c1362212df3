"""The demo's page: one self-contained HTML file with figures, loss curves and contact sheets."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerflow.evaluation import baselines
from layerflow.files import write_text
from layerflow.model.layers import TASKS

if TYPE_CHECKING:
    from layerflow.cli.demo.steps import Demo

Rows = list[tuple[str, str]]
DECOMPOSITION = "Decomposition: alpha IoU on held-out clips"
REFRESH_SECONDS = 5
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
    """All figures as titled tables of name and value, for the terminal and the page.

    What is not measured yet says so.
    """
    sections: tuple[tuple[str, str, Callable[[Any], Rows]], ...] = (
        ("Corpora", "jobs", lambda jobs: corpora_rows(jobs, result.get("mattes", []))),
        ("Training", "losses", loss_rows),
        (DECOMPOSITION, "decomposition", decomposition_rows),
        (f"{DECOMPOSITION}, moving in the stills' look", "decomposition_new", decomposition_rows),
        ("Motion of generated foregrounds", "motion", motion_rows),
    )
    tables = [
        (title, rows(result[key]) if key in result else [("not done yet", "")])
        for title, key, rows in sections
    ]
    return [*tables, ("Cost", cost_rows(result))]


def corpora_rows(jobs: dict[str, Any], mattes: Sequence[dict[str, Any]]) -> Rows:
    rows = []
    for name, job in jobs.items():
        rows.append((name, f"{job['kept']} clips kept, {job['rejected']} rejected"))
        rows += [("", f"{count} x {reason}") for reason, count in list(job["reasons"].items())[:8]]
    ious = [item["iou"] for item in mattes]
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
    finished = [one["iou"] for one in said["models"].values()][-1:]
    above = any(iou > max(scores.values()) for iou in finished)
    rows.append(("the last above all baselines", "yes" if above else "NO"))
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
    """Seconds of each step; which one is at work, and which are still to come."""
    from layerflow.cli.demo.steps import STEPS

    rows = []
    for name in (*STEPS, "all"):
        if name in result["seconds"]:
            cpu = result.get("cpu_seconds", {}).get(name)
            text = f"{result['seconds'][name]:.1f} s"
            rows.append((name, text if cpu is None else f"{text}, CPU {cpu:.1f} s"))
        elif "all" not in result["seconds"] and name != "all":
            rows.append((name, "at work" if result.get("running") == name else "not done yet"))
    rows.append(("", "of this run: what an earlier one had done takes no time"))
    if result.get("peak_gib"):
        rows.append(("most memory, all processes", f"{result['peak_gib']:.2f} GiB"))
    return rows


def write_page(demo: Demo, result: dict[str, Any]) -> Path:
    """Write ``OUT/report.html``, whole or in part; returns its path.

    Until all steps are done the page loads itself again every few seconds.
    """
    done = "all" in result["seconds"]
    parts = ["<h1>LayerFlow demo</h1>"]
    if not done:
        parts.append(f"<p>At work: {html.escape(result.get('running', ''))}. This page grows.</p>")
    tables = figures(result)
    if not done:  # what is at work stands on top
        tables = [tables[-1], *tables[:-1]]
    for title, rows in tables:
        parts += [f"<h2>{html.escape(title)}</h2>", table(rows)]
        if title == "Training" and result.get("losses"):
            parts.append(curves({k: v["curve"] for k, v in result["losses"].items()}))
    for key in ("decomposition", "decomposition_new"):
        if key in result:
            scores = sorted(result[key]["baselines"].items(), key=lambda one: -one[1])
            every = table([(name, f"{iou:.3f}") for name, iou in scores])
            summary = f"all baselines, {key.replace('_', ', ')}"
            parts.append(f"<details><summary>{summary}</summary>{every}</details>")
    for title, pictures in sheets(demo, result).items():
        parts.append(f"<h2>{html.escape(title)}</h2>")
        parts += [picture(path.read_bytes(), name) for name, path in pictures.items()]
        parts += [] if pictures else ["<p>not done yet</p>"]
    refresh = "" if done else f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">\n'
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"{refresh}<title>LayerFlow demo</title>\n<style>{STYLE}</style></head>\n"
        "<body>" + "\n".join(parts) + "</body></html>\n"
    )
    path = demo.out / "report.html"
    write_text(path, page)
    return path


def sheets(demo: Demo, result: dict[str, Any]) -> dict[str, dict[str, Path]]:
    """The contact sheets that there are: title -> caption -> file."""
    samples = {task: demo.out / "samples" / task / "contact.png" for task in TASKS}
    stages = sorted((demo.out / "sheets").glob("*.png"))
    return {
        "Samples of the finished model: one held-out clip, four tasks": (
            samples if result.get("sampled") else {}
        ),
        "Stage by stage": {path.stem: path for path in stages},
        "Clips": {
            name: path for name in result.get("jobs", {}) if (path := corpus_sheet(demo, name))
        },
    }


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


def corpus_sheet(demo: Demo, name: str) -> Path | None:
    """A contact sheet of a corpus' clips, made once; None for an empty corpus."""
    from layerflow.corpus.table import Corpus
    from layerflow.media.contact_sheet import save_sheet

    path = demo.out / "sheets" / "corpora" / f"{name}.png"
    if not path.is_file():
        corpus = Corpus.open(demo.corpus(name))
        if not len(corpus):
            return None
        indices = sorted({int(i) for i in np.linspace(0, len(corpus) - 1, SHEET_CLIPS)})
        save_sheet(path, [corpus.clip(i) for i in indices], height=72)
    return path
