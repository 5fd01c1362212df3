"""Files of strangers opened as what they must be: regular files, no pipes and no devices."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class NotRegularError(OSError):
    """A pipe, a device or a folder in place of a file."""


def open_regular(path: Path) -> int:
    """A file descriptor to read a regular file with.

    Raises NotRegularError for a pipe, a device or a folder: reading those may wait for ever.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    number = os.open(path, flags)  # a pipe is opened without waiting, and looked at only then
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise NotRegularError("it is no regular file")
    return number


def read_regular(path: Path, limit: int) -> bytes:
    """The first ``limit`` + 1 bytes of a regular file: more than ``limit`` is for the caller."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(limit + 1)
