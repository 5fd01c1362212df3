"""Backends on networks that carry one subject through a clip: ``auto`` finds it, they follow it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipelines.engine.networks import network
from pipelines.matting import (
    BACKDROP,
    CHOSEN,
    MATTE,
    Backdrop,
    Chosen,
    Matte,
    MattingBackend,
    check_frames,
)
from pipelines.matting.auto.backend import AutoMatting
from pipelines.matting.auto.carry import overlap
from pipelines.matting.stabilise import matte_from_predictions


class Follower(Protocol):
    """A network that follows what it is shown on one frame."""

    def follow(self, frames: np.ndarray, mask: np.ndarray, key: int) -> np.ndarray:
        """Probabilities or alpha, float32 [T, H, W], of what ``mask``, bool [H, W], shows on frame
        ``key`` of uint8 [T, H, W, 3]."""
        ...


class FollowMatting(ABC):
    """Mattes a clip by following the subject that ``finder`` finds through it.

    ``weights``: the folder of the network. ``model``: which networks find the subject, as of
    ``auto``. ``finder``: a backend to use in place of that.

    A class of one network says what ``makes`` it of folder and device, and which folder it
    ``wants``. Raises ValueError without one, and as ``check``.
    """

    name: str
    makes: Callable[[str, str], Follower]
    wants: str
    needs = frozenset({BACKDROP, CHOSEN})
    asks = True

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str = "cpu",
        model: str | None = None,
        finder: MattingBackend | None = None,
    ) -> None:
        self.check()
        if weights is None:
            raise ValueError(
                f"matting backend {self.name!r} needs --weights FOLDER, {self.wants}; nothing is "
                "downloaded unless asked"
            )
        made = network(MATTE, type(self).makes, str(weights), device, methods=("follow",))
        self.tracker: Follower = made
        self.finder = AutoMatting(model, device) if finder is None else finder

    @abstractmethod
    def check(self) -> None:
        """Raises ValueError where a package that it needs is not installed."""

    def __call__(
        self,
        frames: np.ndarray,
        backdrop: Backdrop | None = None,
        chosen: Chosen | None = None,
    ) -> Matte:
        """Matte uint8 [T, H, W, 3]; what the finder leaves empty stays empty. ``chosen``: for it.

        Confidence: the finder's own, but ``matte_confidence`` of the network, and that and
        ``matte_agreement`` times the IoU of the two mattes.
        """
        check_frames(frames)
        by_hand: dict[str, Any] = {} if chosen is None else {"chosen": chosen}
        found = self.finder(frames, backdrop, **by_hand)
        mask = found.alpha >= 0.5
        if not mask.any():
            return Matte(np.zeros(frames.shape[:3], np.float32), found.confidence)
        key = key_frame(mask)
        matte = matte_from_predictions(frames, self.tracker.follow(frames, mask[key], key))
        vote = overlap(matte.alpha >= 0.5, mask)
        agreement = found.confidence.get("matte_agreement", 1.0) * vote
        confidence = matte.confidence["matte_confidence"] * vote
        own = {"matte_confidence": confidence, "matte_agreement": agreement}
        return Matte(matte.alpha, found.confidence | own)


def key_frame(mask: np.ndarray) -> int:
    """The frame of bool [T, H, W] to prompt with: of median size among those with a subject, the
    one nearest the middle of the clip."""
    sizes = mask.sum((1, 2))
    there = np.flatnonzero(sizes)
    off = np.abs(sizes[there] - np.median(sizes[there]))
    near = there[off <= off.min()]
    return int(min(near, key=lambda t: abs(t - len(mask) // 2)))
