"""What a quality gate turned mined clips down for, in numbers, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def print_misses(
    out: Path, gate: str, thresholds: Mapping[str, tuple[float, float]] | None = None
) -> None:
    """A line for every threshold that decided: how many clips, the middle and the nearest value,
    what was wanted; then what a looser preset would take, and the commands for it.

    Prints nothing where the gate turned nothing down.
    """
    from rich.console import Console
    from rich.table import Table

    from layerflow.corpus.table import Corpus
    from pipelines.gates import misses, resolve_gate

    rows = [row for row in Corpus.open(out).rejected() if row["stage"] in ("filters", "gate")]
    found = misses((row["quality"] or {} for row in rows), resolve_gate(gate, thresholds))
    if not found:
        return
    console = Console(highlight=False, soft_wrap=True)
    table = Table("clips", f"score (gate {gate})", "middle", "nearest", "wanted", box=None)
    for one in found:
        wanted = f"{'at least' if one.side == 'below' else 'at most'} {one.bound:g}"
        table.add_row(str(one.clips), one.score, f"{one.middle:.3g}", f"{one.nearest:.3g}", wanted)
    console.print(table)
    for line in _advice(out, gate, rows):
        console.print(line)


def _advice(out: Path, gate: str, rows: list[dict[str, Any]]) -> list[str]:
    from pipelines.gates import judge, looser

    lines = []
    for preset in looser(gate)[:1]:
        passing = [row["stage"] for row in rows if judge(row["quality"] or {}, preset) is None]
        early = passing.count("filters")
        more = f", and would look at the layers of {early} more" if early else ""
        lines = [
            f"Of these, --gate {preset} would take {passing.count('gate')}{more}:",
            f"  layerflow retry {out} --gate {preset} --out {out}-{preset}",
        ]
    return [*lines, "To look at what was turned down:", f"  layerflow view {out} --out {out}.html"]
