"""What a manifest may say of a step that has a network: where it runs, and how many of it."""

from __future__ import annotations

from pydantic import Field, field_validator

from manifests.common import Strict

GPU_SHARE = 0.25
"""Of a GPU, by default: a network's actor also scales pictures and smooths mattes, so that four of
them keep one GPU busy."""


class Step(Strict):
    """Actors that hold a step's network, once each, for the workers that do the rest.

    It says where and how fast, and is no part of the recipe.
    """

    gpus: float = Field(
        default=GPU_SHARE, ge=0, le=16, description="of one actor; 0: it runs on a CPU"
    )
    batch: int = Field(
        default=1, ge=1, le=256, description="clips that go through it together, at most"
    )
    concurrency: tuple[int, int] | None = Field(
        default=None,
        description="actors, least and most; they are waited for. None: as many as fit",
    )

    @field_validator("concurrency")
    @classmethod
    def _ordered(cls, asked: tuple[int, int] | None) -> tuple[int, int] | None:
        if asked is not None and not 1 <= asked[0] <= asked[1]:
            raise ValueError("concurrency is [LEAST, MOST] with 1 <= LEAST <= MOST")
        return asked
