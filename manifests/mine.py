"""What a mine job may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from manifests.chosen import Box, Choice, Point, parse_box, parse_points
from manifests.common import Size, Strict, check
from manifests.steps import Step

Gate = Literal["off", "loose", "coarse", "standard", "strict"]
LocalFile = Annotated[str, PlainSerializer(lambda path: Path(path).name, return_type=str)]
"""A local path of which recipes and corpora record the last part only."""
Bound = Annotated[float, Field(allow_inf_nan=True)]


class Captions(Strict):
    """Prompts by a vision-language model: a local folder, with ``url`` an endpoint, or what the
    captioner of an installed package makes of them.

    What only says where and how fast is not part of the recipe.
    """

    model: LocalFile = Field(
        "", description="model folder; with url the endpoint's name of the model"
    )
    captioner: str | None = Field(
        None,
        min_length=1,
        exclude_if=lambda name: name is None,
        description="captioner of a package; none: endpoint with a url, else local",
    )
    url: str | None = Field(
        None, exclude=True, description="base address of an OpenAI-compatible endpoint, .../v1"
    )
    key_env: str | None = Field(
        None,
        exclude=True,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the environment variable that holds the endpoint's key; never the key itself",
    )
    frames: int = Field(4, ge=1, le=32, description="moments of a clip that are shown")
    side: int = Field(512, ge=32, le=2048, description="their longer side at most, pixels")
    max_tokens: int = Field(200, ge=16, le=226, description="longest prompt, in T5 tokens")
    retries: int = Field(2, ge=0, le=10, description="times to ask again for a bad prompt")
    attempts: int = Field(6, ge=1, le=20, exclude=True, description="tries of one request")
    concurrency: int = Field(
        3, ge=1, le=64, exclude=True, description="requests at a time of each worker"
    )
    timeout: float = Field(120.0, gt=0, le=3600, exclude=True, description="seconds a request")
    device: str = Field("cpu", exclude=True, description="torch device of a local model")

    @field_validator("url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not url.startswith(("http://", "https://")) or "@" in url or "?" in url:
            raise ValueError("url is http(s)://HOST[:PORT]/PATH without user, password or query")
        return url

    @model_validator(mode="after")
    def _model_of_our_own(self) -> Captions:
        if not self.model and self.captioner is None:
            raise ValueError("model is needed, or the captioner of a package")
        return self


class MineOptions(Strict):
    """Real video -> mined clips. The names are those of ``layerflow mine``'s options."""

    inputs: list[str] = Field(min_length=1, description="video files and folders")
    out: str = Field(description="the corpus folder to make")
    size: Size = Field(description="HEIGHTxWIDTH of the clips")
    frames: int = Field(16, ge=2, le=512, description="frames of a clip")
    fps: float = Field(8.0, gt=0, le=240, description="frames a second of a clip")
    matting: str = Field("auto", description="matting backend")
    weights: str | None = Field(None, description="the backend's weights, a local path")
    gate: Gate = Field("standard", description="quality gate")
    thresholds: dict[str, tuple[Bound, Bound]] = Field(
        {}, description="score -> (minimum, maximum), in place of the gate's own"
    )
    device: str = Field("cpu", exclude=True, description="of backend, refiner and inpainter")
    inpaint: str = Field("opencv", description="what fills background that no frame showed")
    inpaint_weights: str | None = Field(None, description="the inpainter's weights, a local path")
    refine: str | None = Field(
        None,
        min_length=1,
        exclude_if=lambda name: name is None,
        description="network that refines the matte's edge; none: the backend's own edge",
    )
    refine_weights: str | None = Field(
        None, exclude_if=lambda path: path is None, description="its weights, a local path"
    )
    captions: Captions | None = Field(None, description="prompts where no sidecar or table has any")
    prompts: str | None = Field(None, description="CSV, JSONL or Parquet table of prompts")
    steps: dict[Literal["matte", "refine", "inpaint", "caption"], Step] = Field(
        {}, exclude=True, description="where the networks of steps run, and how many of each"
    )
    box: Annotated[Box, BeforeValidator(parse_box)] | None = Field(
        None,
        exclude_if=lambda box: box is None,
        description="the subject is in X0,Y0,X1,Y1, shares of the picture as it is shown",
    )
    points: Annotated[tuple[Point, ...], BeforeValidator(parse_points)] | None = Field(
        None,
        exclude_if=lambda points: points is None,
        description="the subject is at X,Y[;X,Y...]; X,Y,0: it is not there",
    )
    at: float | None = Field(
        None,
        exclude_if=lambda at: at is None,
        description="seconds at which box and points hold; none: as each shot begins",
    )
    subjects: Literal["one", "each"] = Field(
        "one",
        exclude_if=lambda subjects: subjects == "one",
        description="each: a clip for each clear subject, the others stay in its background",
    )
    against: list[str] = Field(
        [],
        exclude_if=lambda against: not against,
        description="corpora (folders, URLs) whose clips are not to be repeated",
    )
    span: float = Field(60.0, gt=1, description="seconds of video that one unit of work takes")
    deadline: float = Field(180.0, gt=0, description="seconds that one decoding request may take")
    crf: int = Field(10, ge=0, le=40, description="H.264 quality of colour layers")
    licence: str | None = Field(None, description="licence of all inputs, for the record")
    attribution: str | None = Field(None, description="whom to name for all inputs")

    @model_validator(mode="after")
    def _weights_of_a_refiner(self) -> MineOptions:
        if self.refine_weights is not None and self.refine is None:
            raise ValueError("refine_weights are of no refiner: say which with refine")
        return self

    @model_validator(mode="after")
    def _one_that_is_chosen(self) -> MineOptions:
        if self.choice is not None and self.subjects == "each":
            raise ValueError("a subject chosen by hand is one: not with subjects: each")
        return self

    @property
    def choice(self) -> Choice | None:
        """The subject chosen by hand for all videos. Raises ValueError where it is none."""
        given = {"box": self.box, "points": self.points, "at": self.at}
        if all(value is None for value in given.values()):
            return None
        return check(given, Choice, "box, points, at")


def of_command(content: dict[str, Any]) -> MineOptions:
    """The options of ``layerflow mine``, where those of the captioner stand beside the others.

    Raises ValueError as ``check`` does.
    """
    flat = ("caption_model", "captioner", "caption_url", "caption_key_env")
    captions = {k.removeprefix("caption_"): v for k, v in content.items() if k in flat}
    own = {key: value for key, value in content.items() if key not in flat}
    return check(own | ({"captions": captions} if captions else {}), MineOptions, "layerflow mine")
