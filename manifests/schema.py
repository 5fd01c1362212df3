"""The corpus manifest: the jobs to run, in order, with every option that a command can say.

``job`` says which job it is; it is no part of the recipe.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manifests.common import Strict
from manifests.mine import MineOptions
from manifests.pack import PackOptions
from manifests.paste import PasteOptions


class MineJob(MineOptions):
    """``job: mine`` and the options of ``layerflow mine``."""

    job: Literal["mine"] = Field(exclude=True)


class PasteJob(PasteOptions):
    """``job: paste`` and the options of ``layerflow paste``."""

    job: Literal["paste"] = Field(exclude=True)


class PackJob(PackOptions):
    """``job: pack`` and the options of ``layerflow pack``."""

    job: Literal["pack"] = Field(exclude=True)


Job = Annotated[MineJob | PasteJob | PackJob, Field(discriminator="job")]


class BuildManifest(Strict):
    """What ``layerflow build`` reads. Paths are relative to the working directory."""

    jobs: list[Job] = Field(min_length=1)
