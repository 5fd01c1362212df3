"""What the steps of mining know: of a video, and of one window of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, U8
from layerflow.media.decode import Decoder
from layerflow.media.video import F64
from layerflow.weights import with_content
from manifests.chosen import Choice
from manifests.mine import MineOptions
from pipelines.engine.networks import network
from pipelines.engine.steps import Refused
from pipelines.gates import Gate, judge, resolve_gate
from pipelines.matting import (
    MATTE,
    Backdrop,
    Chosen,
    Earlier,
    MattingBackend,
    make_backend,
    network_of,
)
from pipelines.matting.auto.networks import resolved
from pipelines.matting.refine import REFINE, Refiner, make_refiner
from pipelines.mine.plan import Twin, VideoSpan
from pipelines.mine.score import Flows
from pipelines.mine.survey import Candidate, Findings
from pipelines.mine.traces import Traces
from pipelines.vision.inpaint import INPAINT, Inpainter, make_inpainter
from pipelines.vision.plate import Plate


@dataclass(frozen=True)
class Before:
    """How the window before ended: its shot, the time of its last frame, that frame and its matte,
    how sure the backend was of it, and ``Window.name``."""

    shot: int
    end: float
    last: Earlier
    confidence: float
    name: tuple[float, int] | None = None


@dataclass
class Video:
    """What the windows of one video share. path: the local file; recipe: the job's hash; ended: the
    window that was matted last, more than one if it had several subjects; sure: the last of them in
    whose matte its backend trusted."""

    options: MineOptions
    recipe: str
    span: VideoSpan
    findings: Findings
    path: Path
    decoder: Decoder
    latest_backdrop: tuple[int, Backdrop | None] = (-1, None)  # of a shot, by its index
    ended: tuple[Before, ...] = ()
    sure: Before | None = None

    @cached_property
    def choices(self) -> list[Choice]:
        """The subjects that were chosen by hand, those of a time after the one without."""
        found = [Choice.model_validate(choice) for choice in self.span.choices]
        return sorted(found, key=lambda choice: -1.0 if choice.at is None else choice.at)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Height and width of the picture as it is shown."""
        info = self.decoder.probe(self.path)
        return info.height, info.width

    @cached_property
    def frame_times(self) -> F64:
        """The seconds of all frames, float64 [N]."""
        return self.decoder.frame_times(self.path)

    @cached_property
    def gate(self) -> Gate:
        return resolve_gate(self.options.gate, self.options.thresholds)

    @cached_property
    def backend(self) -> MattingBackend:
        return backend_of(self.options)

    @cached_property
    def refiner(self) -> Refiner | None:
        return refiner_of(self.options)

    @cached_property
    def inpainter(self) -> Inpainter:
        return inpainter_of(self.options)


def backend_of(options: MineOptions) -> MattingBackend:
    """The matting backend in this process, around networks that may be those of actors, or the
    backend of an actor."""
    asked = options.matting, options.weights, options.device
    if network_of(options.matting) == "whole":
        made: MattingBackend = network(MATTE, matting_backend, *asked)
        return made
    return matting_backend(*asked)


def refiner_of(options: MineOptions) -> Refiner | None:
    """As ``backend_of``: the refiner, if there is one."""
    if options.refine is None:
        return None
    asked = options.refine, options.refine_weights, options.device
    made: Refiner = network(REFINE, make_refiner, *asked)
    return made


def inpainter_of(options: MineOptions) -> Inpainter:
    """As ``backend_of``: the inpainter."""
    asked = options.inpaint, options.inpaint_weights, options.device
    made: Inpainter = network(INPAINT, make_inpainter, *asked)
    return made


def with_networks(options: MineOptions) -> MineOptions:
    """The options with all that decides what networks say: of ``auto`` which take part, of a
    refiner and of an inpainter with a model folder what their weights hold.

    Raises ValueError for weights that are missing, or others than the options name.
    """
    told = {"matting": resolved(options.matting)}
    if options.refine is not None and options.refine_weights is not None:
        told["refine"] = with_content(options.refine, options.refine_weights)
    if options.inpaint_weights is not None and Path(options.inpaint_weights).is_dir():
        told["inpaint"] = with_content(options.inpaint, options.inpaint_weights)
    return options.model_copy(update=told)


@lru_cache(maxsize=1)
def matting_backend(name: str, weights: str | None, device: str) -> MattingBackend:
    """One backend a process: weights are loaded once, not once a unit."""
    return make_backend(name, weights=weights, device=device)


@dataclass(eq=False, repr=False)
class Window:
    """What is known of one window. Its steps fill it from top to bottom.

    twin: the earlier window that it resembles; frames, foreground: uint8 ``[T, H, W, 3]``;
    given_matte (the one that comes with the video, for a backend that needs it), alpha: uint8
    ``[T, H, W]``; backdrop: in the light of each frame, if the shot has one; confidence: the
    backend's own scores; row: of the corpus. chosen: where the subject is, if chosen by hand.
    before: how the window before ended, if this one goes on from there. Where each subject of a
    window has a clip, number: of this one; name: the time at which it was first seen and its number
    there; others: uint8 ``[T, H, W]``, all other subjects; siblings: their windows, of the first.
    """

    video: Video
    place: Candidate
    twin: Twin | None = None
    scores: dict[str, float] = field(default_factory=dict)
    frames: U8 = field(init=False)
    flows: Flows = field(init=False)
    given_matte: U8 | None = None
    backdrop: Backdrop | None = None
    chosen: Chosen | None = None
    before: Before | None = None
    number: int = 0
    name: tuple[float, int] | None = None
    others: U8 | None = None
    siblings: list[Window] = field(default_factory=list)
    alpha: U8 = field(init=False)
    confidence: dict[str, float] = field(default_factory=dict)
    plate: Plate = field(init=False)
    foreground: U8 = field(init=False)
    traces: Traces = field(init=False)
    prompts: dict[str, str] = field(init=False)
    row: dict[str, Any] = field(init=False)

    @property
    def subject(self) -> str:
        """The id of what is matted: one a shot, or of several in it."""
        shot, video = self.place.shot, self.video
        return video.findings.subject(shot, video.span.joined.get(str(shot)), self.name)

    @property
    def just_before(self) -> list[Before]:
        """How the window ended that this one goes on from; nothing if there is none."""
        place, period = self.place, 1 / self.video.options.fps
        return [
            before
            for before in self.video.ended
            if before.shot == place.shot and 0 < place.start - before.end < 1.5 * period
        ]

    @property
    def layers(self) -> dict[str, U8]:
        """The layers by the names of ``LayeredClip``."""
        return {
            FOREGROUND: self.foreground,
            ALPHA: self.alpha,
            BACKGROUND: self.plate.background,
            BLENDED: self.frames,
        }

    def fetch(self, path: Path, op: Literal["fetch", "matte"] = "fetch") -> U8:
        """The window's frames (or their mattes) from a video of the same times, at clip size."""
        video, place = self.video, self.place
        return video.decoder.fetch(path, place.times, *video.options.size, box=place.box, op=op)

    def refuse_by_gate(self, step: str) -> None:
        """Raise ``Refused`` in the name of a step if a score fails the quality gate."""
        verdict = judge(self.scores, self.video.gate)
        if verdict is not None:
            raise Refused(step, verdict)
