"""A mine job against its kernels alone; its memory and time per clip as inputs grow.

    python bench/mine.py [--videos 10 40 100] [--matting motion] [--size 120x160]

Kernels alone: two plain processes call decoding, shots, matting, plate, colour, scores and encoding
on the same videos, without Ray, child processes, staging or compaction. Efficiency is the kernels'
CPU seconds / the job's (the whole tree of processes), and the slope of wall time over the number of
videos, kernels / job, each measured next to the other. The fixed part (starting Ray) is given by
itself. Memory is the proportional set size of all processes of the job, sampled.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from layerflow.cli.demo.memory import PeakMemory, Tree
from layerflow.clip import U8
from layerflow.corpus.table import Corpus
from layerflow.media.decode import Decoder
from layerflow.media.video import fetch, scan
from manifests.common import parse_size
from manifests.mine import MineOptions
from pipelines.engine.steps import run_steps
from pipelines.inputs.prompts import TEMPLATE
from pipelines.mine.backdrop import backdrop_times
from pipelines.mine.duplicates import signature
from pipelines.mine.frames import find_bars, trim_fades
from pipelines.mine.job import STEPS
from pipelines.mine.plan import VideoSpan
from pipelines.mine.shots import cut_windows, find_shots
from pipelines.mine.survey import Candidate, Findings
from pipelines.mine.window import Video, Window
from pipelines.vision.numerics import single_thread

FRAMES, FPS = 8, 8.0


def make_video(path: Path, seed: int, height: int, width: int) -> None:
    """One clip: a textured patch crosses a panning picture; every video another one."""
    rng = np.random.default_rng(seed)

    def picture(h: int, w: int, cells: int) -> np.ndarray:
        noise = rng.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
        return cv2.resize(noise, (w, h), interpolation=cv2.INTER_CUBIC).clip(0, 255)

    back, patch = picture(height, width + 40, 14), picture(height // 3, height // 3, 7)
    speed, pan = rng.uniform(4, 7), rng.uniform(0, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "14", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(FRAMES):
            frame = back[:, round(pan * t) : round(pan * t) + width].copy()
            x = round(10 + speed * t)
            frame[height // 3 : height // 3 + len(patch), x : x + len(patch)] = patch
            image = av.VideoFrame.from_ndarray(frame.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))


class InProcess(Decoder):
    """Decodes in this process."""

    def fetch(self, path: Path, *given: Any, op: str = "fetch", **how: Any) -> U8:
        return fetch(path, *given, **how)


def kernels(path: Path, matting: str, size: tuple[int, int]) -> float:
    """All kernels on one video of one clip. Returns their CPU seconds."""
    start = time.process_time()
    said = MineOptions(inputs=[str(path)], out="", size=size, frames=FRAMES, fps=FPS,
                       matting=matting, gate="off")  # fmt: skip
    span = VideoSpan(str(path), "", path.name, prompts=dict(TEMPLATE))
    video = Video(said, "0" * 16, span, Findings(), path, InProcess())
    times, thumbs = scan(path)
    rate = (len(times) - 1) / (times[-1] - times[0])
    for shot in find_shots(thumbs, rate):
        shot = trim_fades(thumbs, shot)
        box = find_bars(thumbs[shot[0] : shot[1]])
        video.findings.shots.append(backdrop_times(times[slice(*shot)]))
        video.findings.starts.append(float(times[shot[0]]))
        for place in cut_windows(times, shot, FRAMES, FPS, box):
            signature(thumbs[times.searchsorted(place.times)])
            found = Candidate(place.times, place.box, len(video.findings.shots) - 1)
            with single_thread():
                run_steps(STEPS, Window(video, found))
    return time.process_time() - start


def run_job(folder: Path, out: Path, matting: str, size: str) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and peak memory (bytes) of ``layerflow mine`` with 2 workers."""
    command = [
        sys.executable, "-c", "from layerflow.cli.main import main; main()", "mine", str(folder),
        "--out", str(out), "--size", size, "--frames", str(FRAMES), "--fps", str(FPS),
        "--matting", matting, "--gate", "off", "--workers", "2", "--quiet",
    ]  # fmt: skip
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    tree = Tree(child.pid)
    with PeakMemory(tree.sample) as sampled:
        code = child.wait()
        wall = time.perf_counter() - start
    if code:
        raise SystemExit(f"the job ended with status {code}")
    return wall, tree.cpu, sampled.peak


def run_kernels(folder: Path, matting: str, size: tuple[int, int]) -> tuple[float, float]:
    """Wall and CPU seconds of the kernels on all videos, in two plain processes."""
    context = multiprocessing.get_context("spawn")
    videos = sorted(folder.glob("*.mp4"))
    work = partial(kernels, matting=matting, size=size)
    with context.Pool(2) as pool:
        pool.map(work, videos[:2], chunksize=1)  # imports
        start = time.perf_counter()
        cpu = sum(pool.imap_unordered(work, videos))
        return time.perf_counter() - start, cpu


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[10, 40, 100])
    parser.add_argument("--matting", default="motion")
    parser.add_argument("--size", default="120x160")
    options = parser.parse_args()
    height, width = parse_size(options.size)
    print(f"{'videos':>6} {'load':>5} {'job s':>7} {'cpu s':>7} {'MB':>6}", end=" ")
    print(f"{'kernels s':>9} {'cpu s':>7}", flush=True)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in options.videos:
            folder, out = Path(temporary) / f"in{count}", Path(temporary) / f"out{count}"
            folder.mkdir()
            for seed in range(count):
                make_video(folder / f"{seed:04d}.mp4", seed, height, width)
            plain, plain_cpu = run_kernels(folder, options.matting, (height, width))
            wall, cpu, peak = run_job(folder, out, options.matting, options.size)
            assert len(Corpus.open(out)) == count
            found.append((count, wall, cpu, peak / 1e6, plain, plain_cpu))
            print(f"{count:6} {os.getloadavg()[0]:5.1f} {wall:7.1f} {cpu:7.1f} {peak / 1e6:6.0f}",
                  f"{plain:9.1f} {plain_cpu:7.1f}", flush=True)  # fmt: skip
    first, last = found[0], found[-1]
    if last[0] == first[0]:
        return
    more = [b - a for a, b in zip(first, last, strict=True)]
    print(f"per video beyond the first {first[0]}: job {more[1] / more[0]:.2f} s wall,")
    print(f"  {more[2] / more[0]:.2f} s CPU; kernels {more[4] / more[0]:.2f} and", end=" ")
    print(f"{more[5] / more[0]:.2f}; efficiency {more[4] / more[1]:.2f} by wall, ", end="")
    print(f"{more[5] / more[2]:.2f} by CPU; memory grew by {more[3]:.0f} MB")


if __name__ == "__main__":
    main()
