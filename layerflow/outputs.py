"""Where results may be written, and how a file is written whole."""

from __future__ import annotations

import re
from pathlib import Path

from layerflow.corpus.store import in_object_store

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(?:[:/]|$)")  # also as a Path shows it: s3:/bucket


def local_output(path: str | Path) -> Path:
    """The path that a result is written to. Raises ValueError for a URL of any scheme.

    Without this a URL would silently become a local folder named after its scheme.
    """
    if _URL.match(str(path).strip()):
        raise ValueError(
            f"{path}: results are written to local or mounted paths only, not to URLs; write "
            "them to a folder, then copy that there"
        )
    return Path(path)


def corpus_output(path: str | Path) -> Path | str:
    """Where a corpus job writes: a local path, or the URL of a folder in an object store.

    Raises ValueError for a URL of another scheme.
    """
    return str(path).strip() if in_object_store(str(path).strip()) else local_output(path)


def free_output(path: str | Path) -> Path:
    """``local_output`` of a folder. Raises ValueError when it exists and is not empty."""
    out = local_output(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty; choose another folder or remove it")
    return out
