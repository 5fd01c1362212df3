"""The demo manifest: what `layerflow demo` makes, mines, pastes, encodes, trains and measures.

The jobs' own options (``mine``, ``paste``, ...) are those of the commands of that name; inputs and
outputs are filled in, and everything is checked before any work starts.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from manifests.common import Size, Strict


class VideoSet(Strict):
    """Procedural source videos with known mattes (``pipelines.procedural.media.make_videos``)."""

    count: int = Field(ge=1)
    size: Size
    frames: int = Field(ge=2)
    fps: float = Field(gt=0)
    families: list[str] = Field(min_length=1, description="taken in turn")
    look: str = "cool"


class CutoutSet(Strict):
    """RGBA cut-outs; ``held_out`` more of them, from another seed, for the held-out clips."""

    count: int = Field(ge=1)
    held_out: int = Field(0, ge=0)
    size: int = Field(96, ge=16)
    look: str = "cool"


class BackgroundSet(Strict):
    """Background stills; ``held_out`` more of them, from another seed."""

    count: int = Field(ge=1)
    held_out: int = Field(ge=1)
    size: int = Field(96, ge=16)
    chroma: float = Field(0.5, ge=0)
    detail: float = Field(0.0, ge=0)


class StillSet(Strict):
    """Layered stills of the new look, for the content stage."""

    count: int = Field(ge=1)
    size: int = Field(64, ge=16)
    look: str = "warm"


class Media(Strict):
    """Everything that is drawn."""

    videos: VideoSet
    foregrounds: CutoutSet
    neutral: CutoutSet
    backgrounds: BackgroundSet
    stills: StillSet


class Counts(Strict):
    """Pasted clips to make."""

    training: int = Field(ge=1)
    held_out: int = Field(ge=1)
    neutral: int = Field(ge=1)


class Encoding(Strict):
    """What the network sees, and how training clips are multiplied."""

    size: Size
    frames: int = Field(ge=2)
    flip: bool = True
    reverse: bool = True
    crops: int = Field(0, ge=0)


class Measures(Strict):
    """How the result is measured."""

    decompose_steps: int = Field(2, ge=1, description="sampling steps of decomposition")
    generate_steps: int = Field(16, ge=1, description="sampling steps of everything else")
    tuning_clips: int = Field(200, ge=1, description="training clips that tune the baselines")
    drift_clips: int = Field(64, ge=1, description="generated clips whose motion is measured")


class DemoManifest(Strict):
    """What ``layerflow demo`` reads."""

    seed: int = Field(0, ge=0)
    media: Media
    mine: dict[str, Any]
    paste: dict[str, Any]
    pack: dict[str, Any] = Field({})
    counts: Counts
    encode: Encoding
    model: dict[str, Any] = Field({}, description="options of the preset tiny")
    train: str = Field("demo-train.yaml", description="train manifest beside this file")
    measure: Measures = Measures.model_validate({})
