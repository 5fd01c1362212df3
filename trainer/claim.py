"""A run's folder: taken for a new run, continued, or refused because it holds another one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from layerflow.documents import read_json
from layerflow.files import sweep, write_json
from manifests.train import TrainManifest
from trainer.checkpoint import OWN, OWN_FILES, checkpoints
from trainer.fetch import fetch
from trainer.tracking.identity import CHANGES, data_changes, differences, identity


def claim(
    out: Path,
    manifest: TrainManifest,
    *,
    fresh: bool = False,
    new_data: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> bool:
    """Make `out` this run's folder; True if it continues one. Call on one process only.

    What is further in the manifest's `upload` is brought here first. fresh: drop what an earlier
    run left, there too (and nothing else). new_data: what the last stage alone trains on may
    differ, and the run's record says from which step on. ValueError when either holds another run,
    with the difference.
    """
    new = identity(manifest)
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)
    if fresh:
        for name in (*OWN, *OWN_FILES):
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if manifest.upload:
        fetch(out, manifest, new, fresh=fresh, new_data=new_data, log=log)
    record = out / "run.json"
    if record.is_file():
        old = read_json(record, {"manifest": dict})
        if changed := differences(old, new, new_data=new_data):
            only_data = not differences(old, new, new_data=True)
            hint = ", or --new-data to go on with it" if only_data else ""
            raise ValueError(
                f"{out} holds a run of another manifest; choose another --out, or --fresh to "
                f"start over{hint}. What changed:\n  " + "\n  ".join(changed)
            )
        changes = [*old.get(CHANGES, []), *changed_data(out, manifest, old, new, log)]
        write_json(record, {**new, CHANGES: changes} if changes else new)
        return True
    present = [name for name in OWN if (out / name).exists()]
    if present:
        raise ValueError(f"{out} has {present} but no run.json; choose another --out or --fresh")
    write_json(record, new)
    return False


def changed_data(
    out: Path,
    manifest: TrainManifest,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    log: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The entry for a run's record when its last stage goes on with other data; none if it does
    not."""
    lines = data_changes(old, new)
    if not lines:
        return []
    stage = manifest.stages[-1].name
    saved = checkpoints(out, stage)
    done = int(saved[-1].name[-8:]) if saved else 0
    log(f"{stage}: other data from step {done + 1} on: {'; '.join(lines)}")
    return [{"stage": stage, "after_step": done, "changed": lines}]
