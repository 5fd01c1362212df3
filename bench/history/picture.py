"""The picture of the history: a small panel a figure, runs from left to right, a colour a machine.

A dot is a median, the bar through it the spread. The scale of a panel begins at zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, LINE = (255, 255, 255), (30, 34, 40), (150, 156, 166), (232, 234, 238)
COLOURS = ((38, 120, 178), (208, 110, 52), (70, 150, 90), (140, 90, 170))
WIDTH, HEIGHT, COLUMNS, RUNS = 330, 130, 4, 30
LEFT, RIGHT, TOP, BOTTOM = 14, 70, 46, 116  # of the plot in its panel


def draw(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw all figures with their last `RUNS` runs."""
    machines = list(dict.fromkeys(line["machine"] for line in lines))
    figures: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        figures.setdefault((line["bench"], line["figure"]), []).append(line)
    rows = -(-len(figures) // COLUMNS)
    image = Image.new("RGB", (WIDTH * COLUMNS, HEIGHT * rows), PAPER)
    canvas = ImageDraw.Draw(image)
    for index, runs in enumerate(figures.values()):
        corner = (index % COLUMNS * WIDTH, index // COLUMNS * HEIGHT)
        panel(canvas, corner, runs[-RUNS:], machines)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def panel(
    canvas: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    runs: Sequence[Mapping[str, Any]],
    machines: Sequence[str],
) -> None:
    (x, y), last = corner, runs[-1]
    title, small = ImageFont.load_default(12), ImageFont.load_default(11)
    canvas.text((x + LEFT, y + 8), f"{last['bench']}: {last['figure']}", INK, title)
    said = ", ".join(filter(None, (last["unit"], f"{last['better']} is better")))
    canvas.text((x + LEFT, y + 24), said, FAINT, small)
    most = max(run["median"] + run["spread"] for run in runs) or 1.0

    def height(value: float) -> float:
        return y + BOTTOM - (BOTTOM - TOP) * min(max(value / most, 0.0), 1.0)

    right = x + WIDTH - RIGHT
    canvas.line((x + LEFT, y + BOTTOM, right, y + BOTTOM), LINE)
    step = (right - x - LEFT) / max(len(runs), 1)
    for place, run in enumerate(runs):
        colour = COLOURS[machines.index(run["machine"]) % len(COLOURS)]
        across, half = x + LEFT + (place + 0.5) * step, run["spread"] / 2
        bar = (across, height(run["median"] + half), across, height(run["median"] - half))
        canvas.line(bar, colour, 2)
        middle = height(run["median"])
        canvas.ellipse((across - 3, middle - 3, across + 3, middle + 3), colour)
    canvas.text((right + 6, height(last["median"]) - 7), f"{last['median']:.4g}", INK, title)
