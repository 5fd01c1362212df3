"""Going on elsewhere: what a run left at its `upload` is brought to OUT when it is further there.

Equal manifests, models and latents give equal runs, so whatever is further may be gone on from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from layerflow.files import new_folder, replacing
from manifests.train import TrainManifest
from trainer.checkpoint import OWN, OWN_FILES, checkpoints, stage_steps
from trainer.tracking.identity import differences
from trainer.upload import MARKER, open_copies


class Copies:
    """The folder or URL to which a run is copied."""

    def __init__(self, url: str, out: Path) -> None:
        self.url = url
        self.files, self.base = open_copies(url, out)
        self.files.invalidate_cache()

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file's content, None if it is not there."""
        place = f"{self.base}/{name}"
        if not self.files.exists(place):
            return None
        content: dict[str, Any] = json.loads(self.files.cat_file(place))
        return content

    def names(self, folder: str) -> list[str]:
        """Of the folders in a folder, those that are complete, sorted."""
        place = f"{self.base}/{folder}"
        found = self.files.ls(place, detail=False) if self.files.exists(place) else []
        names = sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)
        return [name for name in names if self.is_complete(f"{folder}/{name}")]

    def is_complete(self, folder: str) -> bool:
        return bool(self.files.exists(f"{self.base}/{folder}/{MARKER}"))

    def bring(self, folder: str, out: Path) -> None:
        """Copy a folder to its place below `out`: all of it, or nothing."""
        source, target = f"{self.base}/{folder}", out / folder
        with new_folder(target, replace=True) as temporary:
            for path in self.files.find(source):
                relative = PurePosixPath(path.removeprefix(source).lstrip("/"))
                if ".." in relative.parts or relative.name == MARKER:
                    continue
                place = temporary / relative
                place.parent.mkdir(parents=True, exist_ok=True)
                self.files.get_file(path, str(place))

    def bring_file(self, name: str, out: Path) -> None:
        if self.files.exists(f"{self.base}/{name}"):
            with replacing(out / name) as temporary:
                self.files.get_file(f"{self.base}/{name}", str(temporary))

    def remove(self) -> None:
        """Drop a run's copies, and nothing else that lies there."""
        for name in (*OWN, *OWN_FILES):
            if self.files.exists(f"{self.base}/{name}"):
                self.files.rm(f"{self.base}/{name}", recursive=True)


class AnotherRunError(ValueError):
    """What was copied is not of this run."""


def fetch(
    out: Path,
    manifest: TrainManifest,
    identity: Mapping[str, Any],
    *,
    fresh: bool,
    new_data: bool = False,
    log: Callable[[str], None],
) -> None:
    """Bring finished stages and the newest checkpoint from `manifest.upload` where they are further
    than those in `out`. fresh: drop the copies there instead.

    ValueError when another run was copied there; or when the copies cannot be read and `out` holds
    nothing to go on from, for then a run might start over without need.
    """
    assert manifest.upload is not None
    here = (out / "run.json").is_file()
    copies = Copies(manifest.upload, out)
    try:
        if fresh:
            copies.remove()
        elif is_this_run(copies, identity, here, new_data=new_data):
            bring_newer(copies, out, manifest, log)
    except AnotherRunError:
        raise
    except Exception as error:  # of any kind: it depends on what stands behind the URL
        what = f"upload: the copies at {manifest.upload} cannot be read: {error}"
        if not here:
            raise ValueError(
                f"{what}. A run may be there to go on from, so none is started; mend it, choose "
                "another upload, or leave it out"
            ) from error
        log(f"{what}; goes on from what is here")


def is_this_run(
    copies: Copies, identity: Mapping[str, Any], here: bool, *, new_data: bool = False
) -> bool:
    """Whether there are copies of the run. AnotherRunError if they are of another."""
    record = copies.json("run.json")
    if record is None:
        present = [name for name in ("checkpoints", "stages") if copies.names(name)]
        if present and not here:
            raise AnotherRunError(
                f"upload: {copies.url} holds {present} but no run.json that says of which run; "
                "choose another upload, or --fresh to drop them"
            )
        return False
    changed = differences(record, identity, new_data=new_data)
    if changed:
        raise AnotherRunError(
            f"upload: {copies.url} holds a run of another manifest; choose another upload, or "
            "--fresh to drop it. What changed:\n  " + "\n  ".join(changed)
        )
    return True


def bring_newer(
    copies: Copies, out: Path, manifest: TrainManifest, log: Callable[[str], None]
) -> None:
    brought: list[str] = []
    finished, saved, best = (copies.names(name) for name in ("stages", "checkpoints", "best"))
    for stage in manifest.stages:
        own = stage_steps(out, stage.name)
        said = copies.json(f"stages/{stage.name}/stage.json") if stage.name in finished else None
        if said and said["steps"] > own:
            brought.append(f"stages/{stage.name}")
            own = said["steps"]
        if own >= stage.steps:
            continue
        pattern = re.compile(rf"{re.escape(stage.name)}-\d{{8}}")
        newest = max((name for name in saved if pattern.fullmatch(name)), default="")
        if newest > max((path.name for path in checkpoints(out, stage.name)), default=""):
            brought.append(f"checkpoints/{newest}")
        break  # later stages have not begun
    else:  # nothing is left to train, so nothing else would make the export
        brought += ["export"] if brought and copies.is_complete("export") else []
    if brought:
        for name in OWN_FILES:
            copies.bring_file(name, out)
        for folder in (*(f"best/{name}" for name in best), *brought):
            copies.bring(folder, out)
        log(f"goes on from {copies.url}: brought {', '.join(brought)}")
    if not (out / "run.json").is_file():  # last: it says that all of it was brought
        copies.bring_file("run.json", out)
