"""Matting backend on the rembg package: its local ONNX sessions, or custom ONNX files by path."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.matting import Backdrop, Matte, check_frames, environment, require
from pipelines.matting.onnx_session import require_device
from pipelines.matting.stabilise import matte_from_predictions, unstretch

LOCAL_MODELS: dict[str, str] = {
    "u2net": "Apache-2.0",
    "u2netp": "Apache-2.0",
    "u2net_human_seg": "Apache-2.0",
    "silueta": "Apache-2.0",
    "isnet-general-use": "Apache-2.0",
    "isnet-anime": "Apache-2.0",
    "birefnet-general": "MIT",
    "birefnet-general-lite": "MIT",
    "birefnet-portrait": "MIT",
    "birefnet-dis": "MIT",
    "birefnet-hrsod": "MIT",
    "birefnet-cod": "MIT",
    "birefnet-massive": "MIT",
    "bria-rmbg": "non-commercial (BRIA RMBG); used only because it was asked for by name",
}
CUSTOM_MODELS = ("u2net_custom", "dis_custom", "ben_custom")


class RembgMatting:
    """Runs one of rembg's local sessions on every frame and normalises over the clip.

    ``weights``: an ONNX file (input float32 [N, 3, S, S], output 0 [N, 1, S, S]) for the session
    ``model``, one of ``CUSTOM_MODELS`` (S = 320 for the default ``u2net_custom``, else 1024).
    Without ``weights``, ``model`` is one of ``LOCAL_MODELS``, whose file must lie in rembg's own
    folder unless ``download`` is true. Sessions that send frames to a service are not on the lists.

    rembg divides every frame by its own maximum and stretches every prediction to the full range.
    Here the input is divided by the clip's maximum, the range of each prediction is recorded and
    the stretch undone; the clip is then normalised as a whole and stabilised
    (``stabilise.matte_from_predictions``), so a frame without a subject gets an empty matte.
    """

    name = "rembg"
    needs = frozenset[str]()

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str = "cpu",
        model: str | None = None,
        download: bool = False,
    ) -> None:
        # Importing rembg without onnxruntime raises SystemExit, which would end a worker.
        require("onnxruntime", "rembg")
        require("rembg", "rembg")
        self.version = version("rembg")
        if weights is None:
            self._session = _local_session(model or "u2net", device, download)
            self.licence = LOCAL_MODELS[model or "u2net"]
        else:
            self._session = _custom_session(Path(weights), model or "u2net_custom", device)
            self.licence = "as the weights file"
        require_device(self._session.inner_session, device)
        self._recorder = _Recorder(self._session.inner_session, hasattr(self._session, "sigmoid"))
        self._session.inner_session = self._recorder
        self._session.normalize = self._normalize
        self._brightest = 255.0

    def __call__(self, frames: np.ndarray, backdrop: Backdrop | None = None) -> Matte:
        """Matte uint8 [T, H, W, 3]."""
        check_frames(frames)
        self._brightest = max(1.0, float(frames.max()))
        return matte_from_predictions(frames, np.stack([self._predict(f) for f in frames]))

    def _normalize(
        self,
        image: Any,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        size: tuple[int, int],
    ) -> dict[str, np.ndarray]:
        """What rembg's ``normalize`` does, with the clip's maximum for the frame's."""
        from PIL import Image

        small = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
        scaled = (small / self._brightest - np.array(mean)) / np.array(std)
        name = self._recorder.get_inputs()[0].name
        return {name: scaled.transpose(2, 0, 1)[None].astype(np.float32)}

    def _predict(self, frame: np.ndarray) -> np.ndarray:
        from PIL import Image

        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.simplefilter("ignore")  # rembg divides 0 by 0 for a constant prediction
            mask = self._session.predict(Image.fromarray(frame))[0]
        value = unstretch(np.asarray(mask), *self._recorder.range)
        return 1 / (1 + np.exp(-np.clip(value, -50, 50))) if self._recorder.logits else value


class _Recorder:
    """Stands in for an ONNX session and notes the range of its first output.

    ``logits``: the range is not one of probabilities, and the session applies no sigmoid itself.
    """

    def __init__(self, inner: Any, sigmoid: bool) -> None:
        self._inner = inner
        self._sigmoid = sigmoid
        self.range = (0.0, 0.0)
        self.logits = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, *arguments: Any, **options: Any) -> Any:
        outputs = self._inner.run(*arguments, **options)
        first = outputs[0][:, 0]
        low, high = float(first.min()), float(first.max())
        if self._sigmoid:
            low, high = (float(1 / (1 + np.exp(-np.clip(v, -50, 50)))) for v in (low, high))
        self.range = (low, high)
        self.logits = self.logits or low < -0.01 or high > 1.01
        return outputs


def _providers(device: str) -> list[str]:
    cuda = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    return [*cuda, "CPUExecutionProvider"]


def _custom_session(weights: Path, model: str, device: str) -> Any:
    if model not in CUSTOM_MODELS:
        raise ValueError(
            f"rembg loads weights by path as one of {', '.join(CUSTOM_MODELS)}, not {model!r}"
        )
    if not weights.is_file():
        raise ValueError(f"weights for matting backend 'rembg' not found: {weights}")
    path = weights.resolve()
    from rembg.session_factory import new_session

    # rembg insists that the file lies in its model folder, so that folder is the file's.
    with environment("U2NET_HOME", str(path.parent)):
        try:
            return new_session(model, providers=_providers(device), model_path=str(path))
        except Exception as error:
            raise ValueError(f"{weights} is not an ONNX model that runs: {error}") from error


def _local_session(model: str, device: str, download: bool) -> Any:
    if model not in LOCAL_MODELS:
        raise ValueError(
            f"rembg model {model!r} is not on the list of local models: {', '.join(LOCAL_MODELS)}"
        )
    from rembg.session_factory import new_session
    from rembg.sessions import sessions_class

    kind = next((c for c in sessions_class if c.name() == model), None)
    if kind is None:
        raise ValueError(f"this version of rembg has no model {model!r}")
    if not download and kind.resolve_existing(f"{model}.onnx") is None:
        raise ValueError(
            f"rembg model {model!r} is not on this machine and nothing is downloaded unless asked: "
            f"pass --weights FILE.onnx, or put {model}.onnx into {kind.model_dir()}"
        )
    return new_session(model, providers=_providers(device))
