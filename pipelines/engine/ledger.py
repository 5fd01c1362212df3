"""What a corpus' log says of jobs: which units are in it, and the files that nothing names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from layerflow.corpus import log
from layerflow.corpus.log import Version
from layerflow.corpus.store import Store
from layerflow.corpus.table import Corpus
from layerflow.corpus.writer import logged
from layerflow.files import remove
from pipelines.engine.recipe import Recipe
from pipelines.engine.workers import Unit


def adopted(store: Store, recipe: Recipe, plan: str, units: Sequence[Unit]) -> Version | None:
    """A finished local corpus of before there was a log, as version 1 of one; None without."""
    if store.local is None or not (store.local / "state.json").is_file():
        return None
    info = Corpus.open(store.local).info
    if info.get("state") != "complete":
        return None
    version = logged(store.local, str(info.get("kind", "")), info)
    if (info.get("recipe"), info.get("plan")) == (recipe.hash, plan):
        name = write_done(store, recipe.hash, [unit.key for unit in units])
        version = replace(version, done=(name,))
    log.commit(store, version)
    return log.newest(store)


def write_done(store: Store, recipe: str, keys: Sequence[str]) -> str:
    """Put the list of a job's units into the log; returns its name there."""
    text = "\n".join([recipe, *sorted(keys)]) + "\n"
    name = f"done-{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    store.put(f"{log.VERSIONS}/{name}", text.encode())
    return name


def done_units(store: Store, version: Version, recipe: str) -> set[str]:
    """The units of jobs of a recipe whose rows are in a version."""
    known: set[str] = set()
    for name in version.done:
        first, *keys = store.read(f"{log.VERSIONS}/{name}").decode().split()
        known.update(keys if first == recipe else ())
    return known


def sweep_shards(store: Store) -> None:
    """Remove local shards that no version names, of a job that was killed and asked for others, and
    what killed processes left half written.

    For the holder of the folder's lock.
    """
    if store.local is None:
        return
    for below in ("", log.REJECTED, log.OVERLAY):
        named = log.named_files(store, below)
        for path in (store.local / below).glob("data-*.arrow"):
            if path.name not in named:
                path.unlink()
    for below in ("", log.REJECTED, log.OVERLAY, log.VERSIONS):
        for path in (store.local / below).glob(".*.tmp"):
            remove(path)
