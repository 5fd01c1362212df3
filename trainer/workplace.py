"""Where a run's files lie on this machine.

A run whose `out` is a folder works in it; its workers all see it. One whose `out` is a URL lies
there and nowhere else: rank 0 works in a temporary folder, to which `trainer.fetch` brings what is
there and from which `trainer.upload` copies everything back. Machines share nothing: workers on
others get what rank 0 goes on from through the process group.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from layerflow.corpus.remote.folders import brought
from layerflow.corpus.store import in_object_store
from layerflow.files import is_left_behind, own, remove
from manifests.train import TrainManifest
from trainer.distributed.processes import World

PREFIX = "layerflow-run-"
CHUNK_BYTES = 64 << 20
NEEDED = ("stages/*/stage.json", "stages/*/trained.safetensors", "checkpoints/*/*")
"""What the other workers read of a run: what it goes on from."""


@dataclass
class Workplace:
    """manifest: the run's, with its `upload`. out: the folder of this process."""

    manifest: TrainManifest
    out: Path
    world: World
    afar: bool = False
    made: list[Path] = field(default_factory=list)

    @property
    def upload(self) -> str | None:
        """Where this process copies the run to: rank 0 does."""
        return self.manifest.upload if self.world.rank == 0 else None

    def share(self, opens: Callable[[], None]) -> Path:
        """The folder in which this process finds what rank 0 goes on from, when it has opened the
        run. On every rank. ValueError, on all of them, when rank 0 may not.

        On a machine that does not see rank 0's folder the first worker receives a copy for all.
        """
        if self.world.rank == 0:
            try:
                opens()
            except ValueError as error:
                self.world.tell(str(error))
                raise
        if refusal := self.world.tell(""):
            raise ValueError(refusal)
        if not self.afar or self.world.size == 1:
            return self.out
        out = Path(tempfile.gettempdir(), self.world.tell(self.out.name))
        with suppress(FileExistsError):
            out.mkdir()
            own(out)
            self.made.append(out)
        send_files(self.out, self.made[-1] if self.made else None, self.world)
        self.world.wait()
        return out


@contextmanager
def workplace(manifest: TrainManifest, out: str | Path, world: World) -> Iterator[Workplace]:
    """The folder to train in, for the block; one that was made for it goes with it.

    ValueError where `out` is a URL, for an `upload` and for a stage that needs a folder which all
    workers see.
    """
    if not in_object_store(out):
        yield Workplace(manifest, Path(out), world)
        return
    if manifest.upload:
        raise ValueError(f"upload: {out} is where the run is copied already; leave it out")
    if sharded := [stage.name for stage in manifest.stages if stage.parallel == "fsdp"]:
        raise ValueError(
            f"stage {sharded[0]!r}: with parallel: fsdp every worker writes its part of a "
            "checkpoint; `out` must be a folder that all workers see, and `upload` the URL"
        )
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if is_left_behind(left):
            remove(left)
    here = Path(tempfile.mkdtemp(prefix=PREFIX))
    own(here)
    kept = manifest.model_copy(update={"out": str(here), "upload": str(out)})
    place = Workplace(kept, here, world, afar=True)
    try:
        yield place
    finally:
        for folder in (here, *place.made):
            remove(folder)


def with_model_here(manifest: TrainManifest) -> TrainManifest:
    """The same with the model's folder on this machine, where it lies in an object store."""
    return manifest.model_copy(update={"model": str(brought(manifest.model))})


def send_files(source: Path, target: Path | None, world: World) -> None:
    """Copy `NEEDED` from rank 0's `source` to the `target` of all ranks that have one; a collective
    call."""
    files: list[tuple[str, int]] = []
    if world.rank == 0:
        found = sorted(path for pattern in NEEDED for path in source.glob(pattern))
        files = [(str(p.relative_to(source)), p.stat().st_size) for p in found if p.is_file()]
    files = world.tell(files)
    if target is None:
        for name, size in files:
            _send_file(source / name if world.rank == 0 else None, None, size, world)
        return
    for name, size in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _send_file(None, target / name, size, world)


def _send_file(source: Path | None, target: Path | None, size: int, world: World) -> None:
    for start in range(0, size, CHUNK_BYTES):
        count = min(CHUNK_BYTES, size - start)
        if source is not None:
            read = np.fromfile(source, np.uint8, count, offset=start)
            chunk = torch.from_numpy(read).to(world.device)
        else:
            chunk = torch.empty(count, dtype=torch.uint8, device=world.device)
        dist.broadcast(chunk, 0)
        if target is not None:
            with target.open("ab") as file:
                file.write(chunk.cpu().numpy().tobytes())
    if target is not None:
        target.touch()
