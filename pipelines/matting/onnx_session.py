"""Matting backend that drives ONNX models directly: batched, OpenCV around onnxruntime.

The models are those of the rembg backend; the clip-level normalisation is the same. What goes is
the cost of a frame by itself: Pillow's resampling, double precision, 8-bit masks in between.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipelines.matting import Backdrop, Matte, check_frames, require
from pipelines.matting.stabilise import matte_from_predictions
from pipelines.vision.numerics import single_thread

_NO_GPU = (
    "onnxruntime cannot use the GPU here; install onnxruntime-gpu with the CUDA libraries that it "
    "names, or choose the device cpu"
)
_BATCH_PIXELS = 1 << 19  # a batch on the CPU holds about this many input pixels, on a GPU 8 x that


@dataclass(frozen=True)
class Preset:
    """How a family of models wants its input.

    ``mean`` and ``std`` of RGB after division by the clip's maximum; ``size``: side of the square
    input, where the model itself leaves it open; ``logits``: the output is before the sigmoid;
    ``output``: which of its outputs, by index.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    logits: bool = False
    output: int = 0


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PRESETS: dict[str, Preset] = {
    "u2net": Preset(*_IMAGENET, 320),
    "isnet": Preset((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), 1024),
    "dis": Preset((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), 1024),
    "birefnet": Preset(*_IMAGENET, 1024, logits=True, output=-1),  # coarse ones may come before it
}


class OnnxMatting:
    """Runs an ONNX segmentation model on batches of frames.

    ``weights``: an ONNX file with one input, float32 or float16 [N, 3, S, S], whose output (the
    first, of birefnet the last) is [N, 1, S, S] or [N, S, S]. ``model``: one of ``PRESETS``; by
    default the one that the file's name begins with or contains, else ``u2net``. S and whether N is
    free are read from the file; a fixed N is filled up. ``batch``: frames at a time for a free N.
    ``device``: ``cpu`` or ``cuda[:N]``; a GPU that onnxruntime cannot use is an error, not a slow
    run.

    Raises ValueError for a missing package, file or preset, and for a model of another interface.
    """

    name = "onnx"
    licence = "as the weights file"
    needs = frozenset[str]()

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str = "cpu",
        model: str | None = None,
        batch: int | None = None,
    ) -> None:
        require("onnxruntime", "onnx")
        if weights is None or not Path(weights).is_file():
            raise ValueError(f"weights for matting backend 'onnx' not found: {weights}")
        self.preset = _preset(Path(weights), model)
        self._session = _open(Path(weights), device)
        import onnxruntime

        self.version = onnxruntime.__version__
        entry = _only_input(self._session, Path(weights), self.preset.output)
        self._input = entry.name
        self._dtype = np.float16 if entry.type == "tensor(float16)" else np.float32
        count, _, height, width = entry.shape
        self._size = tuple(v if isinstance(v, int) else self.preset.size for v in (width, height))
        self._fixed = count if isinstance(count, int) and count > 0 else None
        pixels = _BATCH_PIXELS * (8 if device.startswith("cuda") else 1)
        self._batch = self._fixed or batch or max(1, pixels // (self._size[0] * self._size[1]))
        self._output = self._session.get_outputs()[self.preset.output].name
        self._logits = self.preset.logits

    def __call__(self, frames: np.ndarray, backdrop: Backdrop | None = None) -> Matte:
        """Matte uint8 [T, H, W, 3]."""
        return matte_from_predictions(frames, self.predict(frames))

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """Probabilities float32 [T, H, W] of uint8 [T, H, W, 3], neither stretched nor smoothed."""
        return self.predict_many([(frames,)])[0]

    def call_many(self, calls: Sequence[tuple[np.ndarray, ...]]) -> list[Matte]:
        """The matte of each clip, without its backdrop; see ``predict_many``."""
        found = self.predict_many([call[:1] for call in calls])
        return [matte_from_predictions(call[0], p) for call, p in zip(calls, found, strict=True)]

    def predict_many(self, calls: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
        """``predict`` of several clips; those of one brightness fill the network's batches
        together."""
        clips = [check_frames(frames) for (frames,) in calls]
        brightest = [max(1.0, float(frames.max())) for frames in clips]
        found: dict[int, np.ndarray] = {}
        with single_thread():
            for level in dict.fromkeys(brightest):
                places = [place for place, own in enumerate(brightest) if own == level]
                frames = [frame for place in places for frame in clips[place]]
                small = np.concatenate(list(self._outputs(frames, level)))
                ends = np.cumsum([len(clips[place]) for place in places])[:-1]
                found |= dict(zip(places, np.split(small, ends), strict=True))
            return [self._grown(found[place], frames) for place, frames in enumerate(clips)]

    def _grown(self, small: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """The network's answer [T, S, S] for a clip, as probabilities of the clip's size."""
        count, height, width = frames.shape[:3]
        if self._logits or small.min() < -0.01 or small.max() > 1.01:
            self._logits = True
            small = 1 / (1 + np.exp(-np.clip(small, -50, 50)))
        grown = np.empty((count, height, width), np.float32)
        for found, target in zip(small, grown, strict=True):
            _resize(found, width, height, target)
        # The cubic filter overshoots at edges: a lower minimum would lift the whole clip's matte.
        return np.clip(grown, small.min(), small.max(), out=grown)

    def _outputs(self, frames: Sequence[np.ndarray], brightest: float) -> Iterator[np.ndarray]:
        """float32 [n, S, S] of each batch, straight from the network."""
        table = self._table(brightest)
        rows = self._fixed or min(self._batch, len(frames))
        planes = np.zeros((rows, 3, self._size[1], self._size[0]), self._dtype)
        for first in range(0, len(frames), self._batch):
            part = frames[first : first + self._batch]
            for row, frame in enumerate(part):
                for channel, levels in enumerate(
                    cv2.split(_resize(frame, self._size[0], self._size[1]))
                ):
                    np.take(table[channel], levels, out=planes[row, channel], mode="clip")
            given = planes if self._fixed else planes[: len(part)]
            found = self._session.run([self._output], {self._input: given})[0]
            found = found[: len(part), 0] if found.ndim == 4 else found[: len(part)]
            yield np.asarray(found, np.float32)

    def _table(self, brightest: float) -> np.ndarray:
        """What each of 256 levels becomes in each channel, [3, 256]."""
        levels = np.arange(256, dtype=np.float64)[None] / brightest
        mean, std = np.array(self.preset.mean)[:, None], np.array(self.preset.std)[:, None]
        return ((levels - mean) / std).astype(self._dtype)


def _resize(
    image: np.ndarray, width: int, height: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Cubic; along an axis that shrinks by f after a Gaussian of 0.35 sqrt(f^2 - 1) pixels.

    Of OpenCV's ways this one comes nearest to the Lanczos filter with which such models are
    usually fed (0.6-1.2 levels mean on real frames), in half the time of its area filter.
    """
    sigma = [
        0.35 * max(0.0, (a / b) ** 2 - 1) ** 0.5
        for a, b in ((image.shape[1], width), (image.shape[0], height))
    ]
    kernel = [2 * max(1, round(2 * s)) + 1 if s > 0.2 else 1 for s in sigma]
    if max(kernel) > 1:
        image = cv2.GaussianBlur(image, kernel, sigma[0], sigmaY=sigma[1])
    return np.asarray(cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_CUBIC))


def _preset(weights: Path, model: str | None) -> Preset:
    if model is None:
        stem = weights.stem.lower()
        model = next((name for name in PRESETS if name in stem), "u2net")
    if model not in PRESETS:
        raise ValueError(
            f"matting backend 'onnx' knows the presets {', '.join(PRESETS)}, not {model!r}"
        )
    return PRESETS[model]


def _open(weights: Path, device: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 0:
        options.intra_op_num_threads = options.inter_op_num_threads = int(threads)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ValueError(_NO_GPU)
        index = int(device.partition(":")[2] or 0)
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": index}))
    try:
        session = onnxruntime.InferenceSession(str(weights), options, providers=providers)
    except Exception as error:
        raise ValueError(f"{weights} is not an ONNX model that runs: {error}") from error
    require_device(session, device)
    return session


def require_device(session: Any, device: str) -> None:
    """ValueError for a session that fell back to the CPU, which leaves but a line in the log."""
    if device.startswith("cuda") and "CUDAExecutionProvider" not in session.get_providers():
        raise ValueError(_NO_GPU)


def _only_input(session: Any, weights: Path, output: int) -> Any:
    entries = session.get_inputs()
    shapes = [list(entry.shape) for entry in entries]
    kinds = ("tensor(float)", "tensor(float16)")
    if len(entries) != 1 or len(shapes[0]) != 4 or entries[0].type not in kinds:
        raise ValueError(f"{weights}: needs one float input [N, 3, S, S], has {shapes}")
    if isinstance(shapes[0][1], int) and shapes[0][1] != 3:
        raise ValueError(f"{weights}: its input {shapes[0]} does not have 3 channels")
    found = session.get_outputs()[output]
    rank = len(found.shape or ())
    if rank not in (0, 3, 4):
        raise ValueError(f"{weights}: output {found.name} has {rank} dimensions, not [N, 1, S, S]")
    return entries[0]
