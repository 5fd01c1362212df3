"""The corpus manifest: the jobs to run, in order, with every option that a command can say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from manifests.common import Strict, load
from manifests.mine import MineOptions
from manifests.pack import PackOptions
from manifests.paste import PasteOptions


class MineJob(MineOptions):
    """``job: mine`` and the options of ``layerflow mine``."""

    job: Literal["mine"]


class PasteJob(PasteOptions):
    """``job: paste`` and the options of ``layerflow paste``."""

    job: Literal["paste"]


class PackJob(PackOptions):
    """``job: pack`` and the options of ``layerflow pack``."""

    job: Literal["pack"]


Job = Annotated[MineJob | PasteJob | PackJob, Field(discriminator="job")]


class BuildManifest(Strict):
    """What ``layerflow build`` reads. Paths are relative to the working directory."""

    jobs: list[Job] = Field(min_length=1)


def load_build(path: Path) -> BuildManifest:
    """Read a corpus manifest. Raises ValueError with one line per wrong field."""
    return load(path, BuildManifest)


def options_of(job: MineJob | PasteJob | PackJob) -> MineOptions | PasteOptions | PackOptions:
    """A job's options without its ``job`` key, as the job functions take them."""
    # Not by dumping: that leaves out what is not part of a recipe.
    content = {name: getattr(job, name) for name in type(job).model_fields if name != "job"}
    if isinstance(job, MineJob):
        return MineOptions(**content)
    return PasteOptions(**content) if isinstance(job, PasteJob) else PackOptions(**content)
