"""What mining takes of real films, against labels given by eye before any result was seen.

    python -m bench.windows mine FILMS --out FOLDER [--every 3]     # goes on where it was stopped
    python -m bench.windows show FOLDER [--preset standard]

``bench/windows.csv`` says of each window, by its first, middle and last frame, whether it has a
clear subject: ``yes``, one thing that a person would cut out, whole or nearly so in every frame;
``partly``, it comes, goes, is cut or there are several; ``no``. Every window (or every third) goes
through the steps of ``mine`` as for ``--explain``, so that all presets of the gate are judged by
one run. Precision: of what is taken the share of ``yes``; in brackets that of ``yes`` and
``partly``. Yield: of ``yes`` the share that is taken. A contact sheet shows what a preset takes.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from layerflow.corpus.scores import PRESETS
from manifests.mine import MineOptions
from pipelines.gates import judge
from pipelines.matting.auto.networks import resolved
from pipelines.mine.explain import every_window, try_window
from pipelines.mine.window import Window

LABELS = Path(__file__).with_name("windows.csv")
Row = dict[str, Any]


def mine(films: Sequence[str], out: Path, size: str, matting: str, every: int) -> None:
    """``out/rows.jsonl``: film, start, label and scores of each window, and its pictures beside."""
    out.mkdir(parents=True, exist_ok=True)
    done = {(row["film"], row["start"]) for row in read(out)}
    asked = {"inputs": list(films), "out": "", "size": size, "matting": resolved(matting)}
    options = MineOptions.model_validate(asked)
    known = labels()
    for index, window in enumerate(w for w in every_window(options) if isinstance(w, Window)):
        film, start = PurePosixPath(window.video.span.uri).name, round(window.place.start, 2)
        if index % every or (film, start) in done:
            continue
        trial = try_window(window, "")
        picture = np.concatenate([picture for _, picture in trial.pictures[:6]], axis=1)
        cv2.imwrite(str(out / f"{film}-{start:.2f}.png"), picture[..., ::-1])
        row = {"film": film, "start": start, "label": known[film, start], "scores": trial.scores}
        with (out / "rows.jsonl").open("a") as file:
            file.write(json.dumps({**row, "subject": window.subject, "broken": trial.broken}))
            file.write("\n")


def labels() -> dict[tuple[str, float], str]:
    """(film, start in seconds) -> label."""
    with LABELS.open(newline="") as file:
        found = csv.DictReader(file)
        return {(row["video"], float(row["window"])): row["subject"] for row in found}


def read(folder: Path) -> list[Row]:
    path = folder / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def show(folders: Sequence[Path], preset: str) -> None:
    """Print the tables; write the sheet of what ``preset`` takes into the first folder."""
    rows = [row | {"folder": folder} for folder in folders for row in read(folder)]
    total = Counter(row["label"] for row in rows)
    print("windows:", dict(total))
    for one in PRESETS:
        taken = [row for row in rows if judge(row["scores"], one) is None]
        count, number = Counter(row["label"] for row in taken), max(1, len(taken))
        print(
            f"{one}: {len(taken)} taken {dict(count)}, precision {count['yes'] / number:.2f} "
            f"({(count['yes'] + count['partly']) / number:.2f}), "
            f"yield {count['yes'] / max(1, total['yes']):.2f}"
        )
        _by_film(taken)
        _refusals(rows, one)
    _seams(rows)
    _sheet(rows, preset, folders[0] / f"{preset}.png")


def _by_film(taken: Sequence[Row]) -> None:
    films: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in taken:
        films[row["film"]][row["label"]] += 1
    for film, kinds in sorted(films.items()):
        print("   taken of", film, dict(kinds))


def _refusals(rows: Sequence[Row], preset: str) -> None:
    """What stood against windows with a clear subject."""
    reasons: Counter[str] = Counter()
    for row in rows:
        why = judge(row["scores"], preset)
        if row["label"] == "yes" and why is not None:
            reasons[f"{why.split()[0]} {why.split()[2]}, {row['film']}"] += 1
    print("   refused of yes:", dict(reasons.most_common()))


def _seams(rows: Sequence[Row]) -> None:
    seams: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if "seam" in row["scores"]:
            seams[row["film"]].append(row["scores"]["seam"])
    for film, found in seams.items():
        print(f"seams of {film}: mean {np.mean(found):.3f}, least {min(found):.3f}, {len(found)}")


def _sheet(rows: Sequence[Row], preset: str, path: Path) -> None:
    strips = []
    for row in rows:
        if judge(row["scores"], preset) is None:
            strip = cv2.imread(str(row["folder"] / f"{row['film']}-{row['start']:.2f}.png"))
            text = f"{row['film']} {row['start']:.2f} {row['label']}"
            strips.append(cv2.putText(strip, text, (4, 14), 0, 0.45, (0, 255, 255), 1))
    if strips:
        width = max(strip.shape[1] for strip in strips)
        wide = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0))) for s in strips]
        cv2.imwrite(str(path), np.concatenate(wide))
        print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=("mine", "show"))
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", default="240x360")
    parser.add_argument("--matting", default="auto")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--preset", default="standard", choices=PRESETS)
    asked = parser.parse_args()
    if asked.do == "mine":
        mine(asked.inputs, asked.out, asked.size, asked.matting, asked.every)
    else:
        show([Path(folder) for folder in asked.inputs], asked.preset)


if __name__ == "__main__":
    main()
