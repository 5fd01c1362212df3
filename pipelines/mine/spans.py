"""Time spans: a long video is several units of work."""

from __future__ import annotations

import math

WHOLE = 1e12  # an end that no video reaches


def time_spans(seconds: float, span: float) -> list[tuple[float, float]]:
    """Time spans of ``span`` seconds; the last one has no end and may be a quarter longer."""
    count = max(1, math.ceil(seconds / span - 0.25))
    ends = [*((index + 1) * span for index in range(count - 1)), WHOLE]
    return [(index * span, end) for index, end in enumerate(ends)]
