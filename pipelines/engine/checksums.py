"""Sums of bytes: SHA-256 for what is named by it or comes from strangers, XXH3 against damage.

XXH3 (128 bits) finds what a disk or a killed process did to a file, in a tenth of the time; whoever
can write to a folder can make a file of any such sum. A sum is told with its kind: ``xxh3:6fa0``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import xxhash

SHA256, XXH3 = "sha256", "xxh3"
KINDS: dict[str, Any] = {SHA256: hashlib.sha256, XXH3: xxhash.xxh3_128}


def bytes_sum(data: Any, kind: str = XXH3) -> str:
    """The sum of a buffer, with its kind."""
    return f"{kind}:{KINDS[kind](data).hexdigest()}"


def has_sum(content: Path | bytes, told: str) -> bool:
    """Whether a file or some bytes have a sum. False for one of an unknown kind.

    Raises the OSError of a file that cannot be read.
    """
    kind = told.partition(":")[0]
    if kind not in KINDS:
        return False
    if isinstance(content, bytes):
        return bytes_sum(content, kind) == told
    with content.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, KINDS[kind]).hexdigest()}" == told
