"""A saliency network of a few weights, and frames on which its answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


def disc_mask(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    yy, xx = np.mgrid[:height, :width]
    return (xx - x) ** 2 + (yy - y) ** 2 <= radius**2


def bright_disc(count: int = 4, empty: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A white disc on dark grey noise, and its mask; frame ``empty`` has no disc."""
    noise = np.random.default_rng(0).integers(20, 60, (count, 120, 160, 1))
    frames = np.repeat(noise, 3, axis=-1).astype(np.uint8)
    mask = np.stack([disc_mask(120, 160, 50 + 8 * t, 60, 28) for t in range(count)])
    if empty is not None:
        mask[empty] = False
    frames[mask] = 240
    return frames, mask


def make_onnx(path: Path, gain: float = 12.0) -> Path:
    """A one-layer "network": probability = sigmoid(gain x mean channel), of u2net's interface."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    weight = np.full((1, 3, 1, 1), gain / 3, np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("AveragePool", ["c"], ["p"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["p"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", kinds.FLOAT, ["n", 3, 320, 320])],
        [helper.make_tensor_value_info("y", kinds.FLOAT, ["n", 1, 320, 320])],
        [helper.make_tensor("w", kinds.FLOAT, weight.shape, weight.ravel())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(path))
    return path
