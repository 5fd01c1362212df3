"""What evaluation writes for people: the paper's tables, and those of matting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from layerflow.clip import BACKGROUND, BLENDED, FOREGROUND
from layerflow.evaluation.predictions import SINGLES

TaskScores = Mapping[str, Mapping[str, Mapping[str, float]]]
Column = tuple[str, str, int]  # measure, heading, decimals

SHORT = ((FOREGROUND, "FG"), (BACKGROUND, "BG"), (BLENDED, "BL"))


def layered(name: str, heading: str, layers: Sequence[str]) -> list[Column]:
    return [
        (f"{name}_{layer}", f"{heading} {short}", 4) for layer, short in SHORT if short in layers
    ]


PAPER: list[Column] = [
    *[(name, heading, 2) for name, heading, _ in layered("dynamic", "Dyn", ("FG", "BL"))],
    *layered("aesthetic", "Aes", ("FG", "BG", "BL")),
    *layered("text", "Text", ("FG", "BG", "BL")),
    *layered("consistency", "Cons", ("FG", "BG", "BL")),
]
MATTING: list[Column] = [
    ("mad", "MAD", 2),
    ("mse", "MSE", 2),
    ("sad", "SAD", 3),
    ("grad", "Grad", 3),
    ("conn", "Conn", 3),
    ("dtssd", "dtSSD", 2),
    ("iou", "IoU", 3),
]
EACH: list[Column] = [
    ("iou_each", "IoU", 3),
    ("mad_each", "MAD", 2),
    *[
        (f"{measure}_{name}", f"{heading} {number}", decimals)
        for number, name in enumerate(SINGLES.foregrounds, 1)
        for measure, heading, decimals in (("iou", "IoU", 3), ("mad", "MAD", 2))
    ],
    ("order", "order", 3),
]
LAYERED: list[Column] = [
    ("psnr_hole", "PSNR in the hole, dB", 2),
    ("ssim_hole", "SSIM in the hole", 3),
    ("recomposition", "recomposition, levels", 2),
    ("drift", "drift, px/frame", 3),
    ("given_psnr_background", "given BG, dB", 2),
    ("given_psnr_blended", "given BL, dB", 2),
]


def tables(summary: TaskScores) -> str:
    """Markdown: one row a task, means over clips; columns without values are left out."""
    parts = [
        ("Layers (paper, tables 1 and 3)", PAPER),
        ("Matte against truth (MAD, MSE x1000; SAD, Grad, Conn /1000; dtSSD x100)", MATTING),
        ("Each foreground's matte, back to front; who is in front where they overlap", EACH),
        ("Background, recomposition, motion", LAYERED),
    ]
    out = [text for title, columns in parts if (text := table(title, columns, summary))]
    return "\n".join(out)


def table(title: str, columns: Sequence[Column], summary: TaskScores) -> str:
    used = [c for c in columns if any(c[0] in measures for measures in summary.values())]
    if not used:
        return ""
    lines = [f"## {title}", "", "| task | clips | " + " | ".join(c[1] for c in used) + " |"]
    lines.append("|---" * (len(used) + 2) + "|")
    for task, measures in summary.items():
        cells = [f"{measures[n]['mean']:.{d}f}" if n in measures else "-" for n, _, d in used]
        if set(cells) == {"-"}:
            continue
        clips = max(int(measure["clips"]) for measure in measures.values())
        lines.append(f"| {task} | {clips} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
