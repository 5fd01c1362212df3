"""The onnx backend against rembg on the same ONNX file and the same frames.

    python bench/rembg_speed.py [--frames N] [--weights FILE.onnx] [--rounds N]

Without weights a small random network of u2net's interface is made. Every round times all ways
after each other on the same frames (480x720), with one thread, in CPU seconds; printed are medians
over rounds. The folder command (needs filetype, watchdog, asyncer) is ``rembg p`` in a process of
its own on a folder of PNG files, less the same command on one frame (imports, the model); on
our side of that pair stands what a job does for a matte: decoding the video in a child process,
matting with stabilisation, and encoding the alpha cell, less the same on two frames.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.media.cells import encode_alpha, encode_color, encode_png
from layerflow.media.decode import Decoder
from pipelines.matting import make_backend
from pipelines.matting.onnx_session import OnnxMatting

# The command line without its web server, which wants a dozen packages more.
REMBG = """
import sys, types, click
server = types.ModuleType("rembg.commands.s_command")
server.s_command = click.Command("s")
sys.modules["rembg.commands.s_command"] = server
from rembg.cli import main
sys.argv[0] = "rembg"
main()
"""


def small_model(path: Path) -> None:
    """A random network of u2net's interface that works at a quarter of the size; about 2 ms."""
    import onnx

    helper, kinds = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(7)
    tensors = {
        "a": rng.normal(0, 0.15, (16, 3, 5, 5)).astype(np.float32),
        "b": rng.normal(0, 0.15, (16, 16, 3, 3)).astype(np.float32),
        "c": rng.normal(0, 0.15, (1, 16, 3, 3)).astype(np.float32),
        "scale": np.array([1, 1, 4, 4], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], pads=[2, 2, 2, 2], strides=[4, 4]),
        helper.make_node("Relu", ["h"], ["i"]),
        helper.make_node("Conv", ["i", "b"], ["j"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["j"], ["k"]),
        helper.make_node("Conv", ["k", "c"], ["l"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["l", "", "scale"], ["m"], mode="linear"),
        helper.make_node("Sigmoid", ["m"], ["y"]),
    ]
    side = ["n", 3, 320, 320], ["n", 1, 320, 320]
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", kinds.FLOAT, side[0])],
        [helper.make_tensor_value_info("y", kinds.FLOAT, side[1])],
        [helper.make_tensor(k, kinds.FLOAT, v.shape, v.ravel()) for k, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(path))


def moving_frames(count: int) -> np.ndarray:
    """A bright textured square over a smooth picture with noise, uint8 [T, 480, 720, 3]."""
    import cv2

    rng = np.random.default_rng(0)
    back = cv2.resize(rng.uniform(20, 140, (9, 13, 3)).astype(np.float32), (720, 480))
    frames = np.repeat(back[None], count, axis=0) + rng.normal(0, 3, (count, 480, 720, 3))
    patch = cv2.resize(rng.uniform(150, 255, (24, 24, 3)), (160, 160))
    for t in range(count):
        x = 40 + (5 * t) % 480
        frames[t, 150:310, x : x + 160] = patch
    return np.clip(frames, 0, 255).astype(np.uint8)


def cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    own, ended = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of a call: with one thread each, what other work on the machine leaves alone."""
    start = cpu()
    work()
    return cpu() - start


def in_process(weights: Path, frames: np.ndarray, rounds: int) -> None:
    """One frame at a time through rembg, and our predictions, in this process."""
    os.environ["U2NET_HOME"] = str(weights.parent)  # rembg wants the file in its own folder
    import rembg

    plain = rembg.new_session("u2net_custom", model_path=str(weights))
    theirs = make_backend("rembg", weights=weights)
    ours = OnnxMatting(weights, model="u2net")
    ways: dict[str, Callable[[], Any]] = {
        "rembg.remove(only_mask)": lambda: [
            rembg.remove(f, session=plain, only_mask=True) for f in frames
        ],
        "rembg.remove (RGBA)": lambda: [rembg.remove(f, session=plain) for f in frames],
        "our rembg backend, predictions": lambda: [
            theirs._predict(f)  # type: ignore[attr-defined]
            for f in frames
        ],
        "onnx, predictions": lambda: ours.predict(frames),
        "onnx, whole matte (stabilised)": lambda: ours(frames),
        "network alone, input ready": lambda: [ours._session.run(None, ready) for _ in frames],
    }
    ready = {"x": np.zeros((1, 3, 320, 320), np.float32)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(way) / len(frames))
    base = times["onnx, predictions"]
    print(f"{'way':34} {'ms/frame':>9} {'x onnx predictions':>19}")
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, base, strict=True))
        print(f"{name:34} {1000 * statistics.median(found):9.2f} {ratio:19.2f}")
    expected = np.stack([theirs._predict(f) for f in frames])  # type: ignore[attr-defined]
    difference = 255 * np.abs(ours.predict(frames) - expected)
    print(f"difference: mean {difference.mean():.3f}, largest {difference.max():.1f} levels")


def folder_command(weights: Path, folder: Path, out: Path, *flags: str) -> float:
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "U2NET_HOME": str(weights.parent), "PYTHONWARNINGS": "ignore"}
    # u2net_custom takes its path as JSON extras; the file must lie in rembg's folder.
    extras = f'{{"model_path": "{weights}"}}'
    command = [sys.executable, "-c", REMBG, "p", "-m", "u2net_custom", "-x", extras, *flags]
    return seconds(
        lambda: subprocess.run(
            [*command, str(folder), str(out)], env=environment, check=True, capture_output=True
        )
    )


def video_to_alpha(weights: Path, video: Path, count: int) -> int:
    """What a job does for the mattes of ``count`` frames, in clips of 16."""
    backend = make_backend("onnx", weights=weights)
    total = 0
    with Decoder() as decoder:
        times, _ = decoder.scan(video)
        for first in range(0, count, 16):
            frames = decoder.fetch(video, times[first : min(count, first + 16)], 480, 720)
            alpha = np.rint(backend(frames).alpha * 255).astype(np.uint8)
            total += len(encode_alpha(alpha, 8))
    return total


def against_the_folder(root: Path, weights: Path, frames: np.ndarray, rounds: int) -> None:
    many, one = root / "many", root / "one"
    many.mkdir()
    one.mkdir()
    for index, frame in enumerate(frames):
        (many / f"{index:04d}.png").write_bytes(encode_png(frame))
    shutil.copy(many / "0000.png", one)
    video, short = root / "video.mp4", root / "short.mp4"
    video.write_bytes(encode_color(frames, 8))
    short.write_bytes(encode_color(frames[:2], 8))
    out = root / "out"
    found = []
    for _ in range(rounds):
        rgba, mask = (
            (folder_command(weights, many, out, *f) - folder_command(weights, one, out, *f))
            / (len(frames) - 1)
            for f in ((), ("-om",))
        )
        whole = seconds(lambda: video_to_alpha(weights, video, len(frames)))
        start = seconds(lambda: video_to_alpha(weights, short, 2))
        ours = (whole - start) / (len(frames) - 2)
        found.append((rgba, mask, ours))
    print("folder command, ms/frame: rembg p (RGBA), rembg p -om, ours video to alpha cells")
    print("  " + ", ".join(f"{1000 * statistics.median(c):.1f}" for c in zip(*found, strict=True)))
    for name, column in (("RGBA", 0), ("masks only", 1)):
        ratio = statistics.median(row[column] / row[2] for row in found)
        print(f"  ours is {ratio:.2f} times as fast as rembg p ({name})")


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        home = root / "home"
        home.mkdir()
        weights = home / "model.onnx"
        if options.weights is None:
            small_model(weights)
        else:
            shutil.copy(options.weights, weights)
        frames = moving_frames(options.frames)
        print(f"load {os.getloadavg()[0]:.1f}, {options.frames} frames, {options.rounds} rounds")
        in_process(weights, frames, options.rounds)
        against_the_folder(root, weights, frames, options.rounds)


if __name__ == "__main__":
    main()
