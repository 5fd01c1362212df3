"""What mining takes of real films, against labels given by eye before any result was seen.

    layerflow mine FILMS --out mined --size 240x360 --gate off --matting auto
    python -m bench.windows mined [more corpora] [--sheet taken.png --preset standard]

``bench/windows.csv`` says of each window, by its first, middle and last frame, whether it has a
clear subject: ``yes``, one thing that a person would cut out, whole or nearly so in every frame;
``partly``, it comes, goes, is cut or there are several; ``no``. The corpora hold every window
(gate ``off``), so that each preset of the gate is judged by the stored scores. Precision: of what
is taken, the share of ``yes``; in brackets that of ``yes`` and ``partly``. Yield: of ``yes`` the
share that is taken. Also the seams of neighbouring windows.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from layerflow.corpus.scores import PRESETS
from layerflow.corpus.table import Corpus, decode_row
from layerflow.media.contact_sheet import save_sheet
from pipelines.gates import judge
from pipelines.mine.score import seam

LABELS = Path(__file__).with_name("windows.csv")
Label = Mapping[tuple[str, float], tuple[str, str]]
Found = tuple[Corpus, int, dict[str, Any], str]
"""Corpus, index in it, the row without media, the label."""


def labels() -> Label:
    """(film, start in seconds) -> label and why."""
    with LABELS.open(newline="") as file:
        return {
            (row["video"], float(row["window"])): (row["subject"], row["why"])
            for row in csv.DictReader(file)
        }


def found_in(corpora: Sequence[Corpus]) -> list[Found]:
    """Every clip with its label. Raises KeyError for a window that has none."""
    known, found = labels(), []
    for corpus in corpora:
        for index, row in enumerate(corpus.rows(["id", "origin", "quality"])):
            name = PurePosixPath(row["origin"]["uri"]).name
            label, _ = known[name, round(row["origin"]["start"], 2)]
            found.append((corpus, index, row, label))
    return found


def print_yield(found: Sequence[Found]) -> None:
    total = Counter(label for *_, label in found)
    print("windows:", dict(total))
    for preset in PRESETS:
        taken = [one for one in found if judge(one[2]["quality"], preset) is None]
        count = Counter(label for *_, label in taken)
        number = max(1, len(taken))
        print(
            f"{preset}: {len(taken)} taken {dict(count)}, precision {count['yes'] / number:.2f} "
            f"({(count['yes'] + count['partly']) / number:.2f}), "
            f"yield {count['yes'] / max(1, total['yes']):.2f}"
        )
        films: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for one in taken:
            films[PurePosixPath(one[2]["origin"]["uri"]).name][one[3]] += 1
        for film, kinds in sorted(films.items()):
            print("   ", film, dict(kinds))


def print_refusals(found: Sequence[Found]) -> None:
    """What stood against windows with a clear subject, and who was taken without one."""
    for preset in PRESETS:
        reasons: Counter[str] = Counter()
        for _, _, row, label in found:
            why = judge(row["quality"], preset)
            if label == "yes" and why is not None:
                film = PurePosixPath(row["origin"]["uri"]).stem
                reasons[f"{' '.join(why.split()[0:3:2])}, {film}"] += 1
            if label == "no" and why is None:
                print(f"  {preset} took without a subject: {row['origin']}")
        print(f"{preset} refused of yes:", dict(reasons.most_common()))


def print_seams(corpora: Sequence[Corpus]) -> None:
    """Of neighbouring windows of each film, computed from the stored layers."""
    for corpus in corpora:
        seams: defaultdict[str, list[float]] = defaultdict(list)
        last: Any = None
        for index, row in enumerate(corpus.rows(["origin", "fps"])):
            origin, clip = row["origin"], decode_row(corpus.row(index))
            if last and last[0] == origin["uri"] and origin["start"] - last[1] < 1.5 / row["fps"]:
                score = seam(last[2], last[3], clip.blended[0], clip.alpha[0])
                if score is not None:
                    seams[PurePosixPath(origin["uri"]).name].append(score)
            last = origin["uri"], origin["end"], clip.blended[-1], clip.alpha[-1]
        for film, values in seams.items():
            told = f"{np.mean(values):.3f} mean, {np.median(values):.3f} middle, {min(values):.3f}"
            print(f"seams of {film}: {told} least, {len(values)} of them")


def write_sheet(path: Path, found: Sequence[Found], preset: str) -> None:
    """A contact sheet of what a preset takes."""
    taken = [one for one in found if judge(one[2]["quality"], preset) is None]
    clips = [decode_row(corpus.row(index)) for corpus, index, *_ in taken]
    names = [
        f"{PurePosixPath(row['origin']['uri']).name} {row['origin']['start']:.2f} {label}"
        for *_, row, label in taken
    ]
    save_sheet(path, clips, names, height=72, columns_per_layer=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="+", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--preset", default="standard", choices=PRESETS)
    asked = parser.parse_args()
    corpora = [Corpus.open(path) for path in asked.corpora]
    found = found_in(corpora)
    print_yield(found)
    print_refusals(found)
    print_seams(corpora)
    if asked.sheet:
        write_sheet(asked.sheet, found, asked.preset)


if __name__ == "__main__":
    main()
