"""The demo manifest: what `layerflow demo` makes, mines, pastes, encodes, trains and measures.

The jobs' own options (``mine``, ``paste``, ...) are those of the commands of that name; inputs and
outputs are filled in, and everything is checked before any work starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from manifests.common import Size, Strict, check
from manifests.yaml_file import read_yaml


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
    preset: str = Field("tiny", description="the model that is trained: tiny, tiny-wan")
    model: dict[str, Any] = Field({}, description="options of the preset")
    train: str = Field("demo-train.yaml", description="train manifest beside this file")
    train_steps: float = Field(1.0, gt=0, description="times the steps of every stage of it")
    measure: Measures = Measures.model_validate({})
    full: dict[str, Any] = Field({}, description="what the longer demo says instead")


def load(path: Path, *, full: bool = False, seed: int | None = None) -> DemoManifest:
    """The demo manifest of a file; ``full``: with what its key of that name says instead; seed:
    instead of the manifest's.

    ValueError, where, field and what is wrong.
    """
    content = read_yaml(path)
    if full and isinstance(content, Mapping) and isinstance(content.get("full"), Mapping):
        content = merged(content, content["full"])
    if seed is not None and isinstance(content, Mapping):
        content = {**content, "seed": seed}
    return check(content, DemoManifest, str(path))


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with changes, mappings inside it key by key."""
    out = dict(content)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out
