"""What a paste job draws from, and its units of work: ranges of draws."""

from __future__ import annotations

from dataclasses import dataclass

from manifests.paste import PasteOptions
from pipelines.engine.jobs import Unit, unit_key
from pipelines.inputs.sources import PasteSource, list_backgrounds, list_foregrounds

UNIT_PIXELS = 24_000_000  # of all frames of a unit's clips: some seconds of work
MAX_UNIT = 48
MAX_UNITS = 5000  # so that the plan of a million clips stays small


@dataclass(frozen=True)
class PastePlan:
    """What all units share: sources in order."""

    foregrounds: tuple[PasteSource, ...]
    backgrounds: tuple[PasteSource, ...]


def make_plan(options: PasteOptions) -> PastePlan:
    """List all inputs. Raises ValueError where one does not exist or nothing is found."""
    return PastePlan(
        tuple(list_foregrounds(options.foregrounds, options.gate)),
        tuple(list_backgrounds(options.backgrounds)),
    )


def plan_units(plan: PastePlan, options: PasteOptions, size: int | None = None) -> list[Unit]:
    """Ranges of draws; ``size`` draws each, by default as many as make some seconds of work."""
    pixels = options.frames * options.size[0] * options.size[1]
    usual = max(1, min(MAX_UNIT, UNIT_PIXELS // pixels))
    size = size or max(usual, -(-options.count // MAX_UNITS))
    sources = unit_key([s.stamp for s in plan.foregrounds], [s.stamp for s in plan.backgrounds])
    units = []
    for start in range(0, options.count, size):
        stop = min(options.count, start + size)
        payload = {"uri": f"draws {start}..{stop - 1}", "start": start, "stop": stop}
        units.append(Unit(unit_key(sources, start, stop), start, payload))
    return units
