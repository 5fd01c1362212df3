"""What a paste job may say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from manifests.common import Size, Strict
from manifests.mine import Gate

Placement = Literal["auto", "ground", "source", "free"]
Shadow = Literal["none", "background"]


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= pair[0] <= pair[1]:
        raise ValueError(f"a range is [low, high] with 0 <= low <= high, not {list(pair)}")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


class PasteOptions(Strict):
    """Matted foregrounds over other backgrounds -> pasted clips, exact by construction.

    A range is [low, high] of a uniform draw. Speeds are shares of the width per frame, areas are
    shares of the picture.
    """

    foregrounds: list[str] = Field(min_length=1, description="corpora and folders with alpha")
    backgrounds: list[str] = Field(min_length=1, description="corpora, folders of videos, stills")
    out: str = Field(description="the corpus folder to make")
    count: int = Field(ge=1, description="clips to make")
    seed: int = Field(0, ge=0, description="every draw is a function of it and the draw's index")
    size: Size = Field((480, 720), description="HEIGHTxWIDTH of the clips")
    frames: int = Field(16, ge=2, le=512, description="frames of a clip")
    fps: float = Field(8.0, gt=0, le=240, description="frames a second of a clip")

    area: Range = Field((0.05, 0.35), description="drawn size of a foreground, even on a log scale")
    area_limits: Range = Field((0.02, 0.60), description="visible area that is accepted")
    min_visible: float = Field(0.5, ge=0, le=1, description="least visible share, any frame")
    max_upscale: float = Field(1.0, gt=0, le=4, description="largest enlargement of a source")
    placement: Placement = Field("auto", description="where a foreground stands")
    objects: tuple[int, int] = Field((1, 1), description="foreground objects of a clip, range")
    object_colours: bool = Field(
        True, description="where there are several, keep each one's colour also behind others"
    )
    flip: bool = Field(True, description="mirror foregrounds and backgrounds at random")

    speed: Range = Field((0.003, 0.015), description="mean speed of the path")
    max_speed: float = Field(0.03, gt=0, le=1, description="cap of the path's speed")
    min_motion: float = Field(0.3, ge=0, description="least mean motion, pixels a frame")
    turn: float = Field(6.0, ge=0, le=180, description="rotation over a clip, degrees at most")
    zoom: float = Field(0.10, ge=0, lt=1, description="change of scale over a clip at most")
    follow_camera: bool = Field(True, description="foregrounds move with the background's camera")
    camera_speed: Range = Field((0.0, 0.006), description="camera over still backgrounds")
    still_camera: float = Field(0.4, ge=0, le=1, description="share of stills without camera")

    harmonise: Range = Field((0.2, 0.6), description="strength of the colour match")
    match_blur: bool = Field(True, description="never sharper than the background")
    match_grain: bool = Field(True, description="as noisy as the background")
    shutter: float = Field(180.0, ge=0, le=360, description="motion blur, degrees; 0 is none")

    shadow: Shadow = Field("none", description="who owns the contact shadow, if there is one")
    shadow_strength: Range = Field((0.2, 0.45), description="light that a shadow takes")

    gate: Gate = Field("standard", description="quality gate on foregrounds of mined corpora")
    max_clipped: float = Field(
        0.05, ge=0, le=1, description="share of the object that the colour match may clip"
    )
    max_exposure: float = Field(
        0.6, ge=0, le=1, description="share of a layer that may be pure black or white"
    )
    repeats: bool = Field(False, description="keep clips that nearly repeat an earlier one")
    attempts: int = Field(8, ge=1, le=100, description="draws before a clip is given up")
    encoded_check: int = Field(1, ge=0, description="score each Nth clip after encoding; 0: none")
    crf: int = Field(10, ge=0, le=40, description="H.264 quality of colour layers")
    min_psnr: float = Field(
        40.0, ge=0, le=60, description="dB; a checked clip below it is encoded again, finer"
    )
    deadline: float = Field(180.0, gt=0, description="seconds that one decoding request may take")
    licence: str | None = Field(None, description="licence of all folders, for the record")
    attribution: str | None = Field(None, description="whom to name for all folders")
