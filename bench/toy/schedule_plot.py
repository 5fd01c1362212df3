"""The picture of `bench/toy/schedule.py`: one dot a seed, a bar for the mean. Drawn with Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (255, 255, 255), (30, 34, 40), (150, 156, 166)
COLOURS = ((88, 96, 110), (38, 120, 178), (126, 178, 214), (208, 110, 52), (226, 168, 120))
LABELS = (
    "base",
    "with motion LoRA",
    "with, gate left at 1",
    "without motion LoRA",
    "without, stills as one frame",
)
WIDTH, HEIGHT, TOP, BOTTOM = 500, 330, 56, 250


def draw_plot(path: Path, summary: Mapping[str, Any]) -> None:
    """Two panels: motion kept and look reached, both as shares, by arm and seed."""
    count = len(summary["seeds"])
    panels = (
        ("Motion kept: drift / drift of the base", "kept", [1.0] * count),
        ("New look reached: hue, base 0, stills 1", "look", [0.0] * count),
    )
    image = Image.new("RGB", (WIDTH * len(panels), HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    for index, (title, table, base) in enumerate(panels):
        bars = [base, *(values for values in summary[table].values())]
        panel(draw, index * WIDTH, title, bars)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def panel(
    draw: ImageDraw.ImageDraw, left: int, title: str, bars: Sequence[Sequence[float]]
) -> None:
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    draw.text((left + 46, 18), title, INK, large)
    top = max(1.2, *(value for bar in bars for value in bar))

    def height(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * max(value, 0.0) / top

    for tick in np.arange(0, top + 0.01, 0.2):
        y = height(float(tick))
        draw.line((left + 46, y, left + WIDTH - 14, y), (232, 234, 238))
        draw.text((left + 14, y - 7), f"{tick:.1f}", FAINT, small)
    step = (WIDTH - 66) / len(bars)
    for place, (label, values, colour) in enumerate(zip(LABELS, bars, COLOURS, strict=True)):
        x = left + 54 + place * step
        draw.rectangle((x, height(float(np.mean(values))), x + step - 22, BOTTOM), colour)
        for number, value in enumerate(values):
            across = x + (number + 1) * (step - 22) / (len(values) + 1)
            y = height(value)
            draw.ellipse((across - 4, y - 4, across + 4, y + 4), PAPER, INK)
        for line, words in enumerate(wrap(label)):
            draw.text((x - 4, BOTTOM + 8 + 15 * line), words, INK, small)
        draw.text((x - 4, BOTTOM + 56), f"{np.mean(values):.2f}", INK, small)


def wrap(label: str) -> list[str]:
    """Words in lines of about a dozen letters."""
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + len(word) > 11:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
