"""The matting registry and the backends with an alpha channel, a key colour or a network."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pipelines.matting import (
    BACKENDS,
    NEEDS,
    Backdrop,
    Matte,
    MattingBackend,
    make_backend,
    with_alpha,
)
from pipelines.matting.chroma import parse_colour
from tests.support.tiny_networks import bright_disc, make_onnx


def iou(alpha: np.ndarray, mask: np.ndarray) -> float:
    inside = alpha >= 0.5
    return float((inside & mask).sum() / (inside | mask).sum())


def test_unknown_backend_lists_the_choices() -> None:
    with pytest.raises(
        ValueError, match=r"motion.*rembg.*onnx.*transparent-background.*alpha.*chroma"
    ):
        make_backend("magic")


@pytest.mark.parametrize("name", ["motion", "alpha", "chroma"])
def test_weights_are_refused_where_there_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights"):
        make_backend(name, weights=tmp_path / "x.onnx")


@pytest.mark.parametrize("name", ["motion", "alpha", "chroma"])
def test_backends_say_who_they_are(name: str) -> None:
    backend = make_backend(name)
    assert isinstance(backend, MattingBackend)
    assert backend.name == name and backend.version and backend.licence
    with pytest.raises(ValueError, match="uint8"):
        backend(np.zeros((2, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="has no colour_of_the_sky"):
        make_backend(name, colour_of_the_sky="blue")


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_declares_what_it_needs(name: str) -> None:
    module, _, attribute = BACKENDS[name].partition(":")
    backend = getattr(importlib.import_module(module), attribute)
    assert backend.name == name and backend.needs <= NEEDS


class Negative:
    """A backend of one's own: whatever is dark, by a threshold or by the model's name."""

    name, version, licence, needs = "negative", "1", "CC0-1.0", frozenset[str]()

    def __init__(self, model: str = "127") -> None:
        self.level = int(model)

    def __call__(self, frames: np.ndarray, backdrop: Backdrop | None = None) -> Matte:
        return Matte((frames.mean(-1) < self.level).astype(np.float32))


def test_one_line_registers_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "negative", f"{__name__}:Negative")
    frames = np.full((2, 16, 16, 3), 90, np.uint8)
    assert make_backend("negative")(frames).alpha.all()
    assert not make_backend("negative:80")(frames).alpha.any()
    with pytest.raises(ValueError, match="has no weights"):
        make_backend("negative", weights="x")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("rembg", "onnx", "transparent-background"):
        with pytest.raises(ValueError, match=r'pip install "layerflow-toolkit\[matting\]"'):
            make_backend(name, weights="x")


def test_weights_are_needed_and_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is downloaded"):
        make_backend("transparent-background")
    for name in ("rembg", "onnx", "transparent-background"):
        with pytest.raises(ValueError, match="not found"):
            make_backend(name, weights=tmp_path / "absent.onnx")


def test_alpha_takes_the_fourth_channel() -> None:
    frames, mask = bright_disc()
    eight = mask.astype(np.uint8) * 255
    alpha = make_backend("alpha")
    assert np.array_equal(alpha(with_alpha(frames, eight)).alpha, mask.astype(np.float32))
    assert iou(alpha(with_alpha(frames, eight[:, ::2, ::2])).alpha, mask) > 0.9
    with pytest.raises(ValueError, match=r"uint8 \[T, H, W, 4\]"):
        alpha(frames)
    with pytest.raises(ValueError, match="3 frames, its video 4"):
        with_alpha(frames, eight[:3])


def test_chroma_finds_its_key_and_takes_a_given_one() -> None:
    frames, mask = bright_disc()
    frames[~mask] = (20, 200, 40)
    frames[mask] = (180, 60, 90)
    for backend in (make_backend("chroma"), make_backend("chroma", key="#14c828")):
        matte = backend(frames)
        assert iou(matte.alpha, mask) == 1.0
        assert matte.confidence["matte_confidence"] > 0.95
    assert parse_colour("#0000ff") == (0, 0, 255)
    for wrong in ("green", "#12345", (1, 2), (0, 0, 300)):
        with pytest.raises(ValueError, match="key colour"):
            parse_colour(wrong)  # type: ignore[arg-type]


def test_rembg_runs_made_weights_and_leaves_an_empty_frame_empty(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    frames, mask = bright_disc(empty=2)
    backend = make_backend("rembg", weights=make_onnx(tmp_path / "made.onnx"))
    matte = backend(frames)
    assert matte.alpha.shape == mask.shape and matte.alpha.dtype == np.float32
    assert matte.alpha.min() >= 0 and matte.alpha.max() <= 1
    assert iou(matte.alpha[[0, 1, 3]], mask[[0, 1, 3]]) > 0.9
    assert not matte.alpha[2].any()
    assert matte.confidence["matte_confidence"] > 0.5


def test_rembg_refuses_remote_models_junk_and_silent_downloads(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="not on the list"):
        make_backend("rembg", model="atlascloud")
    with pytest.raises(ValueError, match="u2net_custom"):
        make_backend("rembg", weights=make_onnx(tmp_path / "made.onnx"), model="u2net")
    (tmp_path / "junk.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"junk\.onnx is not an ONNX model"):
        make_backend("rembg", weights=tmp_path / "junk.onnx")


def test_rembg_names_the_folder_of_an_absent_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="nothing is downloaded unless asked"):
        make_backend("rembg", model="u2netp")


@pytest.mark.slow
def test_transparent_background_runs_made_weights(tmp_path: Path) -> None:
    from layerflow.compat import ensure_torchvision

    ensure_torchvision()
    pytest.importorskip("transparent_background")
    import torch
    from transparent_background.InSPyReNet import InSPyReNet_SwinB

    torch.manual_seed(0)
    net = InSPyReNet_SwinB(depth=64, pretrained=False, threshold=None, base_size=[384, 384])
    with torch.no_grad():  # random weights give outputs of 1e11: make them timid
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d) and module.out_channels == 1:
                module.weight *= 1e-12
    torch.save(net.state_dict(), tmp_path / "made.pth")
    frames, mask = bright_disc(count=2)
    backend = make_backend("transparent-background", weights=tmp_path / "made.pth")
    raw = backend._predict(frames[0])  # type: ignore[attr-defined]
    # The package stretches even this to 0..1; undone, it spans far less.
    assert raw.shape == mask.shape[1:] and 0 < raw.max() - raw.min() < 0.9
    matte = backend(frames)
    assert matte.alpha.shape == mask.shape and 0 <= matte.alpha.min() <= matte.alpha.max() <= 1
    (tmp_path / "junk.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="does not load"):
        make_backend("transparent-background", weights=tmp_path / "junk.pth")
