"""What a pack job may say."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from manifests.common import Size, Strict

Fill = Literal["blurred", "plain"]


class PackOptions(Strict):
    """Layered stills -> image clips, layered videos -> moving clips.

    The names are those of ``layerflow pack``'s options. Numbered frames have no rate of their own:
    they are taken one by one and said to be at ``fps``.
    """

    inputs: list[str] = Field(min_length=1, description="folders of layered stills")
    out: str = Field(description="the corpus folder to make")
    layout: str = Field("auto", description="auto, or the name of a layout")
    size: Size | None = Field(None, description="HEIGHTxWIDTH; none: as the stills are")
    seed: int = Field(0, ge=0, description="draws of backgrounds follow from it")
    frames: int = Field(16, ge=2, le=512, description="frames of a clip of a layered video")
    fps: float = Field(8.0, gt=0, le=240, description="rate of clips of layered videos")
    fill: Fill = Field("blurred", description="background of a still that has none")
    columns: dict[str, str] = Field(
        default_factory=dict, description="layer or prompt -> column, for tables"
    )
    crf: int = Field(10, ge=0, le=40, description="H.264 quality of colour layers")
    min_psnr: float = Field(
        40.0, ge=0, le=60, description="dB; a moving clip below it is encoded again, finer"
    )
    deadline: float = Field(180.0, gt=0, description="seconds that one decoding request may take")
    prompts: str | None = Field(None, description="CSV, JSONL or Parquet table of prompts")
    licence: str | None = Field(None, description="licence of all inputs, for the record")
    attribution: str | None = Field(None, description="whom to name for all inputs")
