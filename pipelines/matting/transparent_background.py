"""Matting backend on the transparent-background package (InSPyReNet, weights by path)."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.matting import Backdrop, Matte, check_frames, environment, require
from pipelines.matting.stabilise import matte_from_predictions, unstretch

MODES = ("fast", "base")
_HOME = "TRANSPARENT_BACKGROUND_FILE_PATH"


class InspyrenetMatting:
    """Runs the package's ``map`` output on every frame and normalises over the clip.

    ``weights``: a state dict of InSPyReNet (``ckpt_base.pth`` or ``ckpt_fast.pth``), loaded with
    ``weights_only``. ``mode``: ``fast`` (384 x 384) or ``base`` (1024 x 1024, about ten times
    slower). Without ``weights`` and with ``download`` the package fetches its own.

    The network stretches its output to the full range per call; the range is recorded and the
    stretch undone as for rembg.
    """

    name = "transparent-background"
    licence = "MIT"
    needs = frozenset[str]()

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str = "cpu",
        mode: str = "fast",
        download: bool = False,
    ) -> None:
        require("transparent_background", "transparent-background")
        if mode not in MODES:
            raise ValueError(f"transparent-background mode must be one of {MODES}, got {mode!r}")
        if weights is None and not download:
            raise ValueError(
                "matting backend 'transparent-background' needs --weights FILE.pth; nothing is "
                "downloaded unless asked"
            )
        if weights is not None and not Path(weights).is_file():
            raise ValueError(
                f"weights for matting backend 'transparent-background' not found: {weights}"
            )
        self.version = version("transparent-background")
        self._range = (0.0, 0.0)
        self._remover = _make_remover(None if weights is None else Path(weights), device, mode)
        self._pyramid = self._remover.model.forward_inspyre
        self._remover.model.forward_inspyre = self._forward

    def __call__(self, frames: np.ndarray, backdrop: Backdrop | None = None) -> Matte:
        """Matte uint8 [T, H, W, 3]."""
        check_frames(frames)
        return matte_from_predictions(frames, np.stack([self._predict(f) for f in frames]))

    def _forward(self, x: Any) -> Any:
        """The network's own pass, noting the range that its last step is about to stretch."""
        out = self._pyramid(x)
        probability = out["saliency"][-1].sigmoid()
        self._range = (float(probability.min()), float(probability.max()))
        return out

    def _predict(self, frame: np.ndarray) -> np.ndarray:
        mask = self._remover.process(frame, type="map")
        return unstretch(np.asarray(mask)[..., 0], *self._range)


def _make_remover(weights: Path | None, device: str, mode: str) -> Any:
    from layerflow.compat import ensure_torchvision

    ensure_torchvision()
    with _quiet_import():
        from transparent_background import Remover
    with contextlib.ExitStack() as stack:
        if weights is not None:
            # Its home holds a configuration that would win over the package's own: use a fresh one.
            home = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(environment(_HOME, home))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        path = None if weights is None else str(weights.resolve())
        try:
            return Remover(mode=mode, device=device, ckpt=path)
        except Exception as error:
            raise ValueError(
                f"{weights or 'the downloaded file'} does not load as weights of "
                f"transparent-background: {error}"
            ) from error


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Undo what importing the package does to logging and the module search path."""
    path, root = list(sys.path), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parts that nobody here uses
            yield
    finally:
        sys.path[:] = path
        root.handlers[:] = handlers
        root.setLevel(level)
