"""What a mine job may say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from manifests.common import Size, Strict

Gate = Literal["off", "loose", "standard", "strict"]


class MineOptions(Strict):
    """Real video -> mined clips. The names are those of ``layerflow mine``'s options."""

    inputs: list[str] = Field(min_length=1, description="video files and folders")
    out: str = Field(description="the corpus folder to make")
    size: Size = Field(description="HEIGHTxWIDTH of the clips")
    frames: int = Field(16, ge=2, le=512, description="frames of a clip")
    fps: float = Field(8.0, gt=0, le=240, description="frames a second of a clip")
    matting: str = Field("motion", description="matting backend")
    weights: str | None = Field(None, description="the backend's weights, a local path")
    gate: Gate = Field("standard", description="quality gate")
    thresholds: dict[str, tuple[float, float]] = Field(
        {}, description="score -> (minimum, maximum), in place of the gate's own"
    )
    prompts: str | None = Field(None, description="CSV, JSONL or Parquet table of prompts")
    span: float = Field(60.0, gt=1, description="seconds of video that one unit of work takes")
    deadline: float = Field(180.0, gt=0, description="seconds that one decoding request may take")
    crf: int = Field(10, ge=0, le=40, description="H.264 quality of colour layers")
    licence: str | None = Field(None, description="licence of all inputs, for the record")
    attribution: str | None = Field(None, description="whom to name for all inputs")
