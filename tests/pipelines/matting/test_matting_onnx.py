"""The onnx backend: the same mattes as rembg's, batched, with presets, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.matting import make_backend
from pipelines.matting.onnx_session import PRESETS, OnnxMatting
from tests.support.matting_clips import moving_disc
from tests.support.tiny_networks import bright_disc

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def make_model(
    path: Path,
    *,
    side: int | str = 320,
    count: int | str = "n",
    channels: int = 3,
    half: bool = False,
    logits: bool = False,
    squeezed: bool = False,
) -> Path:
    """A small random network: two convolutions with a pooled look around; u2net's interface."""
    helper, kinds = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(7)
    kind, dtype = (kinds.FLOAT16, np.float16) if half else (kinds.FLOAT, np.float32)
    first = rng.normal(0, 0.25, (8, channels, 3, 3)).astype(dtype)
    last = rng.normal(0, 1.2, (1, 8, 3, 3)).astype(dtype)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("AveragePool", ["r"], ["p"], kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
        helper.make_node("Conv", ["p", "b"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Identity" if logits else "Sigmoid", ["d"], ["e"]),
    ]
    shape: list[int | str] = [count, 1, side, side]
    if squeezed:
        nodes.append(helper.make_node("Squeeze", ["e", "axes"], ["y"]))
        shape = [count, side, side]
    else:
        nodes.append(helper.make_node("Identity", ["e"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", kind, [count, channels, side, side])],
        [helper.make_tensor_value_info("y", kind, shape)],
        [
            helper.make_tensor("a", kind, first.shape, first.ravel()),
            helper.make_tensor("b", kind, last.shape, last.ravel()),
            helper.make_tensor("axes", kinds.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    ("rembg_model", "preset", "side", "size"),
    [("u2net_custom", "u2net", 320, (480, 720)), ("dis_custom", "dis", 1024, (240, 360))],
)
def test_predictions_are_those_of_rembg(
    rembg_model: str, preset: str, side: int, size: tuple[int, int], tmp_path: Path
) -> None:
    pytest.importorskip("rembg")
    frames = moving_disc(2, size, radius=60).frames
    weights = make_model(tmp_path / "made.onnx", side=side)
    theirs = make_backend(f"rembg:{rembg_model}", weights=weights)
    theirs._brightest = float(frames.max())  # type: ignore[attr-defined]
    expected = np.stack([theirs._predict(f) for f in frames])  # type: ignore[attr-defined]
    found = OnnxMatting(weights, model=preset).predict(frames)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.ptp(expected) > 0.3  # the network says something
    assert 255 * np.abs(found - expected).mean() < 1.0


def test_the_matte_is_that_of_rembg_and_an_empty_frame_is_empty(tmp_path: Path) -> None:
    pytest.importorskip("rembg")
    from tests.support.tiny_networks import bright_disc, make_onnx

    frames, mask = bright_disc(empty=2)
    weights = make_onnx(tmp_path / "made.onnx")
    ours, theirs = make_backend("onnx", weights=weights), make_backend("rembg", weights=weights)
    a, b = ours(frames), theirs(frames)
    assert 255 * np.abs(a.alpha - b.alpha).mean() < 1.0
    assert not a.alpha[2].any() and a.alpha[0][mask[0]].mean() > 0.9
    assert a.confidence["matte_confidence"] == pytest.approx(
        b.confidence["matte_confidence"], abs=0.02
    )
    assert (ours.name, ours.licence) == ("onnx", "as the weights file") and ours.version


def test_any_batching_gives_the_same(tmp_path: Path) -> None:
    frames = moving_disc(5, (120, 160)).frames
    free = make_model(tmp_path / "free.onnx", side=64)
    expected = OnnxMatting(free, batch=1).predict(frames)
    for weights, batch in (
        (free, 2),
        (free, None),
        (make_model(tmp_path / "two.onnx", side=64, count=2), None),
        (make_model(tmp_path / "flat.onnx", side=64, squeezed=True), 3),
    ):
        assert np.abs(OnnxMatting(weights, batch=batch).predict(frames) - expected).max() < 1e-5
    half = OnnxMatting(make_model(tmp_path / "half.onnx", side=64, half=True)).predict(frames)
    assert np.abs(half - expected).max() < 0.02
    logits = OnnxMatting(make_model(tmp_path / "l.onnx", side=64, logits=True)).predict(frames)
    assert np.abs(logits - expected).max() < 1e-5  # seen by their range


def test_size_and_preset_come_from_the_file_where_it_says_them(tmp_path: Path) -> None:
    named = OnnxMatting(make_model(tmp_path / "my-isnet-v2.onnx", side="s"))
    assert named.preset is PRESETS["isnet"] and named._size == (1024, 1024)
    asked = make_backend("onnx:birefnet", weights=make_model(tmp_path / "x.onnx", side=96))
    assert isinstance(asked, OnnxMatting)
    assert asked.preset is PRESETS["birefnet"] and asked._size == (96, 96)
    inside = asked.predict(moving_disc(2, (60, 80)).frames)
    assert inside.min() >= 0.5 and inside.max() <= 0.75  # sigmoid of this model's 0..1 outputs


def test_birefnet_is_known_by_its_file_and_answers_by_its_last_output(tmp_path: Path) -> None:
    """As exports of BiRefNet-matting are: one frame at a time, logits, coarse maps before the last.
    The answer is worked out here: normalised as for ImageNet, one weight a channel, a sigmoid."""
    helper, kinds = onnx.helper, onnx.TensorProto
    weight, side = np.array([1.5, -0.5, 1.0], np.float32), 32
    shape = [1, 1, side, side]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input_image", "w"], ["output_image"]),
            helper.make_node("AveragePool", ["output_image"], ["m"], kernel_shape=[8, 8]),
        ],
        "made",
        [helper.make_tensor_value_info("input_image", kinds.FLOAT, [1, 3, side, side])],
        [
            helper.make_tensor_value_info("m", kinds.FLOAT, [1, 1, side - 7, side - 7]),
            helper.make_tensor_value_info("output_image", kinds.FLOAT, shape),
        ],
        [helper.make_tensor("w", kinds.FLOAT, (1, 3, 1, 1), weight)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(tmp_path / "BiRefNet-matting-epoch_100.onnx"))
    backend = OnnxMatting(tmp_path / "BiRefNet-matting-epoch_100.onnx")
    assert backend.preset is PRESETS["birefnet"] and backend._fixed == 1
    frames = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    frames[:, 0, 0] = 255  # the brightest level, by which the backend divides
    seen = (frames / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    expected = 1 / (1 + np.exp(-(seen @ weight)))
    assert np.abs(backend.predict(frames) - expected).max() < 1e-4


def test_what_cannot_run_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"not a model")
    good = make_model(tmp_path / "good.onnx", side=32)
    four = make_model(tmp_path / "four.onnx", side=32, channels=4)
    with pytest.raises(ValueError, match=r"junk\.onnx is not an ONNX model"):
        make_backend("onnx", weights=tmp_path / "junk.onnx")
    with pytest.raises(ValueError, match="not found"):
        make_backend("onnx")
    with pytest.raises(ValueError, match="does not have 3 channels"):
        make_backend("onnx", weights=four)
    with pytest.raises(ValueError, match=r"presets u2net, isnet, dis, birefnet, not 'sam'"):
        make_backend("onnx:sam", weights=good)
    with pytest.raises(ValueError, match="has no model"):
        make_backend("motion:fast")


def test_a_gpu_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ValueError, match="cannot use the GPU"):
        make_backend("onnx", weights=make_model(tmp_path / "m.onnx", side=32), device="cuda")


@pytest.mark.parametrize("count", ["n", 4])
def test_clips_that_pass_together_get_the_mattes_that_each_gets_alone(
    tmp_path: Path, count: int | str
) -> None:
    """Of two sizes, lengths and brightnesses; a fixed batch is filled across clips."""
    backend = OnnxMatting(make_model(tmp_path / "m.onnx", side=64, count=count))
    frames, _ = bright_disc(6)
    clips = [frames[:5], frames[:3, :40], frames[2:5] // 2, frames[1:2]]
    together = backend.predict_many([(clip,) for clip in clips])
    for clip, found in zip(clips, together, strict=True):
        assert found.shape == clip.shape[:3]
        assert np.array_equal(found, backend.predict(clip))
    mattes = backend.call_many([(clip, None) for clip in clips[:2]])
    assert np.array_equal(mattes[1].alpha, backend(clips[1]).alpha)
