"""A run's folder: taken for a new run, continued, or refused because it holds another one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from layerflow.documents import read_json
from layerflow.files import sweep, write_json
from manifests.train import TrainManifest
from trainer.checkpoint import OWN, OWN_FILES, differences, identity
from trainer.fetch import fetch


def claim(
    out: Path,
    manifest: TrainManifest,
    *,
    fresh: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> bool:
    """Make `out` this run's folder; True if it continues one. Call on one process only.

    What is further in the manifest's `upload` is brought here first. fresh: drop what an earlier
    run left, there too (and nothing else). ValueError when either holds another run, with the
    difference.
    """
    new = identity(manifest)
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)
    if fresh:
        for name in (*OWN, *OWN_FILES):
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if manifest.upload:
        fetch(out, manifest, new, fresh=fresh, log=log)
    record = out / "run.json"
    if record.is_file():
        changed = differences(read_json(record, {"manifest": dict}), new)
        if changed:
            raise ValueError(
                f"{out} holds a run of another manifest; choose another --out, or --fresh to "
                "start over. What changed:\n  " + "\n  ".join(changed)
            )
        write_json(record, new)
        return True
    present = [name for name in OWN if (out / name).exists()]
    if present:
        raise ValueError(f"{out} has {present} but no run.json; choose another --out or --fresh")
    write_json(record, new)
    return False
