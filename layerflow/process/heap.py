"""Memory that is freed stays with the process, for the next arrays."""

from __future__ import annotations

import ctypes
import os

KEPT = 1 << 30
"""Bytes: larger blocks, and free memory beyond it, go back to the system as always."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
_ASKED = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to ``KEPT`` bytes; returns whether it does now.

    By itself it takes large blocks from the system and gives them back when they are freed, and
    each page of the next one is a fault: a tenth of the time of work on pictures or small networks.
    Does nothing where the user has said what to keep, and with another C library.
    """
    if any(name in os.environ for name in _ASKED):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, KEPT)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
