"""How Xet cuts a file into chunks, of which only those are sent that the Hub does not have.

From the specification (huggingface.co/docs/xet/chunking): a gear hash rolls over the bytes, and a
chunk ends where its top 16 bits are zero, but not before 8 KiB and at 128 KiB at the latest. The
table of the real one is another: sizes and resynchronising are the same, the borders are not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SMALLEST, LARGEST = 8 << 10, 128 << 10
MASK = np.uint64(0xFFFF_0000_0000_0000)
GEAR = np.random.default_rng(64).integers(0, 1 << 64, 256, np.uint64)


def chunks(data: bytes) -> Iterator[bytes]:
    """The chunks of a file, in order."""
    borders = np.flatnonzero(_rolled(data) & MASK == 0) + 1
    start = 0
    while start < len(data):
        place = int(np.searchsorted(borders, start + SMALLEST))
        end = int(borders[place]) if place < len(borders) else len(data)
        end = min(end, start + LARGEST, len(data))
        yield data[start:end]
        start = end


def _rolled(data: bytes) -> np.ndarray:
    """The hash after each byte: the sum of ``GEAR[byte] << age`` over the last 64, modulo 2**64."""
    found = GEAR[np.frombuffer(data, np.uint8)]
    for span in (1, 2, 4, 8, 16, 32):
        found[span:] += found[:-span] << np.uint64(span)
    return found
