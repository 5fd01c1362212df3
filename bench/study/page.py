"""The study's figures as tables and a picture, its samples as one sheet.

    python -m bench.study.page [--out build/study] [--results FOLDER]

Writes OUT/study.md, OUT/study.png and OUT/samples.png from the results (else OUT/results), as far
as the study has come.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench.study.arms import ARMS, GROUPS
from bench.study.results import Results

Figures = Mapping[str, Sequence[float]]

SHOWN = {
    "decompose.fresh.iou": "matte IoU, fresh clips",
    "decompose.fresh_soft.iou": "stills' subjects",
    "decompose.fresh_soft.edge_mad": "edge error of these",
    "decompose.held_out.iou": "matte IoU, held out",
    "decompose.fresh.behind": "behind, fresh, dB",
    "generate.drift": "drift, px/frame",
    "still.drift": "drift at gate 1",
    "generate.soft": "soft share",
}
"""Figure -> its title. Edge error: 1000 x mean difference of alpha where it is soft."""
LOSSES = ("generate", "decompose", "fg2bg", "bg2fg")
INK, FAINT, BAR, DOT = (30, 34, 40), (226, 229, 234), (126, 178, 214), (38, 90, 150)
LABELS, WIDE, ROW, TOP = 170, 190, 22, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/study"))
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    out, results = options.out, Results(options.results or options.out / "results")
    found = {"arms": results.arms(), "baselines": results.get("baselines")}
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.md").write_text(tables(found))
    draw(out / "study.png", found["arms"])
    samples(out)
    print(f"{out}/study.md, study.png, samples.png")


def tables(found: Mapping[str, Any]) -> str:
    arms: Mapping[str, Figures] = found["arms"]
    parts = []
    for title, here in compared(arms):
        parts += [f"## {title}\n", *(f"- {name}: {ARMS[name].says}" for name in here), ""]
        parts += [row(["arm", "seeds", *SHOWN.values()]), row(["---"] * (len(SHOWN) + 2))]
        parts += [row([name, seeds(arms[name]), *cells(arms[name])]) for name in here]
        parts += [""]
        if title.startswith("One model"):
            parts += [row(["held-out loss", *LOSSES]), row(["---"] * (len(LOSSES) + 1))]
            parts += [
                row([name, *(cell(arms[name][f"losses.{task}"]) for task in LOSSES)])
                for name in here
            ]
            parts += [""]
    parts += ["## Without learning\n", row(["baseline", *found["baselines"]])]
    parts += [row(["---"] * (len(found["baselines"]) + 1))]
    first = next(iter(found["baselines"].values()))
    for name in sorted(first, key=lambda name: -first[name]["iou"]):
        ious = [f"{scores[name]['iou']:.3f}" for scores in found["baselines"].values()]
        parts.append(row([name, *ious]))
    return "\n".join(parts) + "\n"


def compared(arms: Mapping[str, Figures]) -> list[tuple[str, list[str]]]:
    """The groups of which there are two arms or more, with these."""
    groups = {title: [name for name in names if name in arms] for title, names in GROUPS.items()}
    return [(title, here) for title, here in groups.items() if len(here) > 1]


def row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def seeds(figures: Figures) -> str:
    """Of how many an arm has figures."""
    return str(max(map(len, figures.values())))


def cells(figures: Figures) -> list[str]:
    return [cell(figures.get(figure, ())) for figure in SHOWN]


def cell(values: Sequence[float]) -> str:
    """Mean, and half of the range over the seeds; empty without any."""
    if not values:
        return ""
    digits = 3 if max(abs(v) for v in values) < 10 else 1
    half = (max(values) - min(values)) / 2
    spread = f" ± {half:.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def draw(path: Path, arms: Mapping[str, Figures]) -> None:
    """A row an arm, in its groups; a column a figure: a bar for the mean, a dot a seed."""
    lines: list[tuple[str, str | None]] = []
    for title, here in compared(arms):
        lines += [(title, None), *((ARMS[name].says, name) for name in here), ("", None)]
    image = Image.new("RGB", (2 * LABELS + WIDE * len(SHOWN), TOP + ROW * len(lines)), "white")
    canvas = ImageDraw.Draw(image)
    bold, plain = ImageFont.load_default(14), ImageFont.load_default(12)
    tops = {f: max(max(one.get(f, (0,))) for one in arms.values()) for f in SHOWN}
    for place, title in enumerate(SHOWN.values()):
        canvas.text((2 * LABELS + place * WIDE, 12), title, INK, plain)
    for number, (label, name) in enumerate(lines):
        y = TOP + number * ROW
        canvas.text((8 if name is None else 20, y + 3), label, INK, bold if name is None else plain)
        for place, figure in enumerate(SHOWN if name else ()):
            if values := arms[str(name)].get(figure):
                bar(canvas, 2 * LABELS + place * WIDE, y, values, tops[figure])
    image.save(path)


def bar(
    canvas: ImageDraw.ImageDraw, x: float, y: float, values: Sequence[float], top: float
) -> None:
    long = (WIDE - 60) / max(top, 1e-9)
    mean = float(np.mean(values))
    canvas.rectangle((x, y + 4, x + WIDE - 60, y + ROW - 6), FAINT)
    canvas.rectangle((x, y + 4, x + mean * long, y + ROW - 6), BAR)
    for value in values:
        middle, radius = x + value * long, 3
        box = (middle - radius, y + 8 - radius, middle + radius, y + 8 + radius)
        canvas.ellipse(box, DOT)
    canvas.text((x + WIDE - 54, y + 3), cell(values).partition(" ")[0], INK)


def samples(out: Path) -> None:
    """One picture of the arms' sheets: first seed, decomposition of crisp subjects and generation,
    each below its name."""
    seed = min(out.glob("seed-*"), key=lambda path: int(path.name.partition("-")[2]), default=out)
    parts: list[Image.Image] = []
    for arm in ("longer", "method"):
        for name in ("decomposed-fresh", "decomposed-fresh_soft", "generated"):
            path = seed / arm / "sheets" / f"{name}.png"
            if path.is_file():
                with Image.open(path) as sheet:
                    parts.append(titled(sheet.convert("RGB"), f"{arm}: {name.replace('_', ' ')}"))
    if not parts:
        return
    whole = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    whole.save(out / "samples.png")


def titled(sheet: Image.Image, title: str) -> Image.Image:
    framed = Image.new("RGB", (sheet.width, sheet.height + 26), "white")
    framed.paste(sheet, (0, 26))
    ImageDraw.Draw(framed).text((8, 5), title, INK, ImageFont.load_default(14))
    return framed


if __name__ == "__main__":
    main()
