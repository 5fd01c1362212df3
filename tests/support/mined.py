"""A video before a green screen, options to mine it, and one window with its layers."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from layerflow.clip import F32, U8
from layerflow.media.decode import Decoder
from manifests.mine import MineOptions
from pipelines.engine.steps import run_steps
from pipelines.matting import Backdrop, Matte, MattingBackend
from pipelines.mine import layers
from pipelines.mine.job import STEPS
from pipelines.mine.plan import VideoSpan
from pipelines.mine.score import neighbour_flows
from pipelines.mine.survey import Candidate, Findings
from pipelines.mine.window import Video, Window


def green_screen(path: Path, seed: int, frames: int = 20, fps: int = 10) -> U8:
    """A textured disc over plain green; returns the true matte uint8 [T, 96, 128]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:96, 0:128]
    start, step = rng.uniform(30, 50), rng.uniform(1.0, 2.0)
    mattes, pictures = [], []
    for t in range(frames):
        inside = (x - start - step * t) ** 2 + (y - 48) ** 2 < 20**2
        stripes = np.where((x - round(step * t)) // 6 % 2, 200, 120)
        disc = np.stack([stripes, np.full_like(stripes, 40), 255 - stripes], axis=-1)
        pictures.append(np.where(inside[..., None], disc, (20, 200, 40)).astype(np.uint8))
        mattes.append(np.where(inside, 255, 0).astype(np.uint8))
    write_video(path, pictures, fps, crf=8)
    return np.stack(mattes)


def options(folder: Path, out: Path, **more: object) -> MineOptions:
    content = {
        "inputs": [str(folder)],
        "out": str(out),
        "size": "96x128",
        "frames": 8,
        "fps": 10,
        "matting": "chroma",
        "gate": "off",
        **more,
    }
    return MineOptions.model_validate(content)


def write_video(path: Path, pictures: list[U8], fps: int = 10, crf: int = 18) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


class KnownMatte:
    """A matting backend that knows the matte, float32 [T, H, W], and keeps what it is given."""

    name, version, licence = "known", "1", "CC0-1.0"

    def __init__(self, alpha: F32, *needs: str) -> None:
        self.alpha = alpha
        self.needs = frozenset(needs)
        self.given: list[tuple[U8, Backdrop | None]] = []

    def __call__(self, frames: U8, backdrop: Backdrop | None = None) -> Matte:
        self.given.append((frames, backdrop))
        return Matte(self.alpha)


def window_of(frames: U8, backend: MattingBackend, backdrop: Backdrop | None = None) -> Window:
    """A window of frames uint8 [T, H, W, 3] before matting."""
    said = MineOptions(inputs=["a"], out="c", size="160x240", crf=2)
    video = Video(said, "", VideoSpan("", "", ""), Findings(), Path(), Decoder())
    video.backend = backend
    window = Window(video, Candidate((0.0,)), scores={"motion": 1.0}, backdrop=backdrop)
    window.frames, window.flows = frames, neighbour_flows(frames)
    return window


def with_layers(frames: U8, alpha: F32, backdrop: Backdrop | None = None) -> Window:
    """A window of frames uint8 [T, H, W, 3] after the steps that make layers of a known matte."""
    first, end = map(STEPS.index, (layers.matte_frames, layers.judge_layers))
    return run_steps(STEPS[first:end], window_of(frames, KnownMatte(alpha), backdrop))
