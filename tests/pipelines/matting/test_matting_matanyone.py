"""The backend on MatAnyone 2, with a stand-in for its publisher's package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.matting import Matte, make_backend
from pipelines.matting.matanyone import MatAnyoneMatting
from tests.support import matanyone_double as double


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    double.install(monkeypatch)
    return double.make_weights(tmp_path / "weights")


def clip(count: int) -> tuple[np.ndarray, np.ndarray]:
    """A red square that moves over blue: uint8 [T, 48, 64, 3], and its mask."""
    mask = np.zeros((count, 48, 64), bool)
    for t in range(count):
        mask[t, 10:30, 8 + 4 * t : 28 + 4 * t] = True
    return np.where(mask[..., None], [200, 30, 30], [20, 30, 180]).astype(np.uint8), mask


class Finder:
    """Says where the subject is on some of the frames."""

    name, version, licence, needs = "some", "1", "", frozenset[str]()

    def __init__(self, mask: np.ndarray, *known: int) -> None:
        self.mask, self.known = mask, known

    def __call__(self, frames: np.ndarray, backdrop: object = None) -> Matte:
        alpha = np.zeros(frames.shape[:3], np.float32)
        for t in self.known:
            alpha[t] = self.mask[t]
        return Matte(alpha, {"matte_confidence": 0.9, "matte_agreement": 0.8})


def test_it_is_warmed_up_on_one_frame_and_mattes_all_before_and_after(folder: Path) -> None:
    frames, mask = clip(6)
    backend = MatAnyoneMatting(folder, finder=Finder(mask, 2, 3))
    assert "non-commercial" in backend.licence
    matte = backend(frames)
    assert np.array_equal(matte.alpha >= 0.5, mask)
    assert matte.confidence["matte_agreement"] == pytest.approx(0.8 * 2 / 6)
    warm_up = ["mask"] + ["first"] * 11
    assert [*warm_up, "next", "next", *warm_up, "next", "next", "next"] == double.CALLS


def test_a_clip_that_begins_with_the_prompt_goes_one_way(folder: Path) -> None:
    frames, mask = clip(2)
    tracker = MatAnyoneMatting(folder, finder=Finder(mask)).tracker
    alpha = tracker.follow(frames, mask[0], 0)
    assert alpha.dtype == np.float32 and alpha.min() >= 0 and alpha.max() <= 1
    assert double.CALLS.count("mask") == 1 and double.CALLS[-1] == "next"
    double.CALLS.clear()
    one = tracker.follow(frames[:1], mask[0], 0)
    assert np.array_equal(one[0], alpha[0]) and ["mask", *["first"] * 11] == double.CALLS


def test_where_nothing_is_found_nothing_is_followed(folder: Path) -> None:
    frames, mask = clip(2)
    assert not MatAnyoneMatting(folder, finder=Finder(mask))(frames).alpha.any()
    assert double.CALLS == []


def test_what_is_missing_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="needs --weights FOLDER"):
        make_backend("matanyone")
    with pytest.raises(ValueError, match=r"not found: .*config\.json"):
        make_backend("matanyone", weights=tmp_path / "none")
    double.make_weights(tmp_path / "other", more=torch.zeros(2))
    with pytest.raises(ValueError, match=r"(?s)does not load as MatAnyone 2 on cpu: .*more"):
        make_backend("matanyone", weights=tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json"):
        make_backend("matanyone", weights=tmp_path / "other")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="choose the device cuda"):
        make_backend("matanyone", weights=folder)


def test_without_its_package_nothing_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"publisher's package 'matanyone2'.*non-commercial"):
        make_backend("matanyone", weights=double.make_weights(tmp_path))
