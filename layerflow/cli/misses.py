"""What a quality gate turned mined clips down for, in numbers, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def print_misses(
    out: Path | str, gate: str, thresholds: Mapping[str, tuple[float, float]] | None = None
) -> None:
    """A line for every threshold that decided: how many clips, the middle and the nearest value,
    what was wanted; then what the looser presets would take, and the commands for it.

    Prints nothing where the gate turned nothing down.
    """
    from rich.console import Console
    from rich.table import Table

    from pipelines.gates import misses, resolve_gate

    wanted_scores = resolve_gate(gate, thresholds)
    if not wanted_scores:
        return
    found = misses((scores for _, scores in _judged(out)), wanted_scores)
    if not found:
        return
    console = Console(highlight=False, soft_wrap=True)
    table = Table("clips", f"score (gate {gate})", "middle", "nearest", "wanted", box=None)
    for one in found:
        wanted = f"{'at least' if one.side == 'below' else 'at most'} {one.bound:g}"
        table.add_row(str(one.clips), one.score, f"{one.middle:.3g}", f"{one.nearest:.3g}", wanted)
    console.print(table)
    for line in _advice(out, gate):
        console.print(line)


def _judged(out: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Step and scores of each row that the gate turned down, a batch in memory at a time."""
    from layerflow.corpus.stats import read_batches
    from layerflow.corpus.store import in_object_store
    from layerflow.corpus.table import Corpus, Table

    remote = in_object_store(out)
    table = Corpus.open(out).rejected_table() if remote else Table(Path(out) / "rejected")
    for batch in read_batches(table, ("stage", "quality")) if table is not None else ():
        for row in batch.to_pylist():
            if row["stage"] in ("filters", "gate"):
                yield row["stage"], row["quality"] or {}


def _advice(out: Path | str, gate: str) -> list[str]:
    from pipelines.gates import judge, looser

    lines: list[str] = []
    for preset in looser(gate)[:2]:
        passing = [step for step, scores in _judged(out) if judge(scores, preset) is None]
        early = passing.count("filters")
        more = f", and would look at the layers of {early} more" if early else ""
        lines += [
            f"Of these, --gate {preset} would take {passing.count('gate')}{more}:",
            f"  layerflow retry {out} --gate {preset} --out {out}-{preset}",
        ]
    return [*lines, "To look at what was turned down:", f"  layerflow view {out} --out {out}.html"]
