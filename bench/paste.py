"""Speed of pasting on one core, side by side with a plain numpy and Pillow compositor.

Run: ``python bench/paste.py [--codecs VIDEO ...] [--ray WORKERS]``. Sources are made up; every
figure is CPU time of this process, so that other work on the machine distorts it less; comparisons
alternate and take the median ratio. Targets, at 16 frames of 480x720: at least 60 frames a second
with the warp alone, 20 with everything on, 4 times the plain compositor; decoding a clip within
0.6 s; kernels at least 0.85 of the whole job. ``--ray`` measures that last one alone, under Ray, in
seconds of the wall as well, against the same kernels in as many plain processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from layerflow.clip import U8, resize_cover
from layerflow.corpus.table import decode_row
from layerflow.media.cells import decode_color, encode_color, encode_png
from layerflow.media.video import read_frames
from layerflow.seeds import generator
from manifests.paste import PasteOptions
from pipelines.engine.steps import Refused, run_steps
from pipelines.paste.draw import (
    choose_sources,
    load_background,
    load_foregrounds,
    mirror_background,
)
from pipelines.paste.job import run_paste
from pipelines.paste.load import Loader
from pipelines.paste.plan import PastePlan, make_plan, plan_units
from pipelines.paste.rows import encode
from pipelines.paste.sample import PasteContext, Sample
from pipelines.paste.scene import cast_shadow, compose_layers, match_appearance, place_objects
from pipelines.paste.scores import check, score
from pipelines.vision.numerics import single_thread

PLAIN = {
    "harmonise": (0.0, 0.0),
    "match_blur": False,
    "match_grain": False,
    "shutter": 0.0,
    "shadow": "none",
    "follow_camera": False,
}
LOAD = (choose_sources, load_foregrounds, load_background, mirror_background)
RENDER = (place_objects, match_appearance, cast_shadow, compose_layers)
PAIRS = 5
RAY_PAIRS = 3
RAY_UNITS = 2  # of a worker


def cpu(work: Callable[[], Any], repeat: int = 3) -> float:
    """Least CPU seconds of one call."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def make_sources(root: Path, height: int, width: int) -> tuple[Path, Path]:
    """Three textured cut-outs of 900 pixels and three stills, larger than a clip."""
    rng = np.random.default_rng(0)
    for k in range(3):
        rgba = np.empty((900, 900, 4), np.uint8)
        rgba[..., :3] = texture(rng, 900, 900)
        y, x = np.indices((900, 900)) - 450.0
        outline = 300 + 60 * np.cos(3 * np.arctan2(y, x))
        rgba[..., 3] = np.clip((outline - np.hypot(y, x)) / 9 + 0.5, 0, 1) * 255
        still = texture(rng, height * 3 // 2, width * 3 // 2)
        for folder, picture in (("cutouts", rgba), ("stills", still)):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / f"{k}.png").write_bytes(encode_png(picture))
    return root / "cutouts", root / "stills"


def texture(rng: np.random.Generator, height: int, width: int) -> U8:
    """Smooth patches, edges and a little noise, as pictures have them."""
    low = cv2.resize(rng.uniform(30, 220, (9, 9, 3)).astype(np.float32), (width, height))
    high = cv2.resize(rng.normal(0, 14, (height // 6, width // 6, 3)), (width, height))
    return np.clip(low + high + rng.normal(0, 2, (height, width, 3)), 0, 255).astype(np.uint8)


def plain_paste(cutout: U8, background: U8, poses: np.ndarray) -> list[np.ndarray]:
    """A loop over frames as it is usually written: Pillow's affine warp, numpy in float64."""
    out = []
    height, width = background.shape[1:3]
    alpha = cutout[..., 3:] / 255.0
    ink = np.dstack([cutout[..., :3] * alpha, alpha * 255.0])
    planes = [Image.fromarray(ink[..., c].astype(np.float32)) for c in range(4)]
    for pose, behind in zip(poses, background, strict=True):
        x, y, scale, angle = pose
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        side = cutout.shape[0] / 2
        data = (cos, sin, side - cos * x - sin * y, -sin, cos, side + sin * x - cos * y)
        warped = [
            np.asarray(
                plane.transform(
                    (width, height),
                    Image.Transform.AFFINE,
                    data,
                    Image.Resampling.BICUBIC,
                ),
                np.float64,
            )
            for plane in planes
        ]
        moved = np.stack(warped, axis=2)
        matte = np.clip(moved[..., 3:] / 255.0, 0, 1)
        colour = np.where(matte > 0, moved[..., :3] / np.maximum(matte, 1e-6), 0)
        foreground = np.rint(np.clip(colour, 0, 255)).astype(np.uint8)
        quantised = np.rint(matte * 255) / 255.0
        blended = quantised * foreground + (1 - quantised) * behind.astype(np.float64)
        out.append(np.rint(blended).astype(np.uint8))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="480x720")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--codecs", nargs="+", type=Path, help="videos to measure codecs on")
    parser.add_argument("--ray", type=int, metavar="WORKERS", help="the whole job under Ray")
    said = parser.parse_args()
    if said.codecs:
        codec_table(said.codecs)
        return
    with tempfile.TemporaryDirectory() as folder, single_thread():
        if said.ray:
            under_ray(Path(folder), said.size, said.frames, said.ray)
        else:
            bench(Path(folder), said.size, said.frames, said.clips)


def plain_options(root: Path, size: str, frames: int, clips: int) -> dict[str, Any]:
    """Made-up sources below ``root`` and what all measurements have in common."""
    height, width = (int(side) for side in size.split("x"))
    foregrounds, backgrounds = make_sources(root, height, width)
    return {
        "foregrounds": [str(foregrounds)],
        "backgrounds": [str(backgrounds)],
        "out": str(root / "out"),
        "count": clips,
        "seed": 1,
        "size": size,
        "frames": frames,
        "area": (0.2, 0.25),
        "shadow": "background",
        "encoded_check": 0,
    }


def bench(root: Path, size: str, frames: int, clips: int) -> None:
    base = plain_options(root, size, frames, clips)
    full, plain = PasteOptions(**base), PasteOptions(**{**base, **PLAIN})
    plan, (height, width) = make_plan(full), full.size
    loader = Loader(full.size, frames, full.fps, 60.0)
    still = loader.foreground(plan.foregrounds[0], np.random.default_rng(0))
    behind = loader.background(plan.backgrounds[0], generator(0, 0, "b"), (0.004, 0.004), 0.0)
    draws = []
    for options in (plain, full):
        sample = Sample(PasteContext(plan, options, "bench"), loader, 0, 0, [])
        sample.objects, sample.background = (still,), behind
        draws.append(sample)
    run_steps((*RENDER, score, encode), sample)
    kernels = {
        "layers, warp alone": cpu(lambda: run_steps(RENDER, draws[0])),
        "layers, everything on": cpu(lambda: run_steps(RENDER, draws[1])),
        "scores": cpu(lambda: score(sample)),
        "encode a clip": cpu(lambda: encode(sample), 2),
        "decode a clip": cpu(lambda: decode_row(sample.row), 2),
    }
    poses = np.zeros((frames, 4))
    poses[:, 0] = np.linspace(width * 0.4, width * 0.5, frames)
    poses[:, 1], poses[:, 2], poses[:, 3] = height / 2, 0.35, 0.05
    with Image.open(root / "cutouts" / "0.png") as image:
        cutout = np.asarray(image)
    other = partial(plain_paste, cutout, behind.frames, poses)
    kernels["plain numpy and Pillow"] = cpu(other, 2)
    print(f"{frames} frames of {size}, one core")
    for name, seconds in kernels.items():
        print(f"  {name:32s} {seconds * 1e3:8.0f} ms a clip {frames / seconds:8.1f} frames/s")
    for name, draw in zip(("warp alone", "everything on"), draws, strict=True):
        ratios = [cpu(other, 1) / cpu(partial(run_steps, RENDER, draw), 1) for _ in range(PAIRS)]
        print(
            f"  {name}: {np.median(ratios):.1f} times the plain compositor's speed ({PAIRS} pairs)"
        )
    print(f"  {sum(len(sample.row[layer]) for layer in sample.layers) / 1e6:.2f} MB a clip")
    whole(PasteOptions(**{**base, "encoded_check": 1, "shadow": "none"}), plan)


def whole(options: PasteOptions, plan: PastePlan) -> None:
    """The job against the sum of its kernels for the same draws, and the share of coding in it."""
    ratios, shares = [], []
    for turn in range(PAIRS):
        spent: dict[str, float] = {}
        loader = Loader(options.size, options.frames, options.fps, 60.0)
        for index in range(options.count):
            kernels_of(index, plan, options, loader, spent)
        loader.close()
        said = options.model_copy(update={"out": f"{options.out}{turn}"})
        start = time.process_time()
        run_paste(said, workers=0, quiet=True)
        job = time.process_time() - start
        ratios.append(sum(spent.values()) / job)
        shares.append(spent["code"] / job)
    each = ", ".join(f"{k} {v / options.count * 1e3:.0f} ms" for k, v in spent.items())
    print(f"  kernels of a clip of the job: {each}")
    print(f"  kernels / whole job: {np.median(ratios):.2f} (median of {PAIRS})")
    print(f"  share of coding in the job: {np.median(shares):.2f}")


def under_ray(root: Path, size: str, frames: int, workers: int) -> None:
    """The job on Ray workers against its kernels in as many plain processes, alternating.

    Ray and the processes run already, as in a long job. CPU seconds of the job are those of this
    process and of everything below it, Ray's own processes included.
    """
    base = plain_options(root, size, frames, 1) | {"encoded_check": 1, "shadow": "none"}
    each = len_of_unit(PasteOptions(**base))
    options = PasteOptions(**base | {"count": each * RAY_UNITS * workers})
    plan, walls, spent = make_plan(options), [], []
    ranges = [range(u.payload["start"], u.payload["stop"]) for u in plan_units(plan, options)]
    run_paste(options.model_copy(update={"count": each * workers}), workers=workers, quiet=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        kernels = partial(kernels_alone, plan=plan, options=options)
        list(pool.map(kernels, ranges[:workers]))
        for turn in range(RAY_PAIRS):
            start = time.perf_counter()
            cpu_kernels = sum(pool.map(kernels, ranges))
            alone = time.perf_counter() - start
            said = options.model_copy(update={"out": f"{options.out}{turn}"})
            start, before = time.perf_counter(), cpu_of_all()
            run_paste(said, workers=workers, quiet=True)
            job, cpu_job = time.perf_counter() - start, cpu_of_all() - before
            walls.append(alone / job)
            spent.append(cpu_kernels / cpu_job)
            print(
                f"  {options.count} clips, {workers} workers: kernels {alone:.1f} s, "
                f"job {job:.1f} s of the wall; {cpu_kernels:.1f} and {cpu_job:.1f} s of CPU",
                flush=True,
            )
    print(f"  kernels / whole job, wall: {np.median(walls):.2f} (median of {RAY_PAIRS})")
    print(f"  kernels / whole job, CPU: {np.median(spent):.2f} (median of {RAY_PAIRS})")


def len_of_unit(options: PasteOptions) -> int:
    """Clips of a unit of a job that is long enough to fill one."""
    unit = plan_units(make_plan(options), options.model_copy(update={"count": 1000}))[0]
    return int(unit.payload["stop"])


def kernels_alone(indices: Sequence[int], plan: PastePlan, options: PasteOptions) -> float:
    """CPU seconds of the kernels of some draws, in this process."""
    spent: dict[str, float] = {}
    loader = kept_loader(options.size, options.frames, options.fps)
    with single_thread():
        for index in indices:
            kernels_of(index, plan, options, loader, spent)
    return sum(spent.values())


@lru_cache(maxsize=1)
def kept_loader(size: tuple[int, int], frames: int, fps: float) -> Loader:
    """One a process, as in a job."""
    return Loader(size, frames, fps, 60.0)


def cpu_of_all() -> float:
    """CPU seconds so far of this process and of all below it that are alive."""
    import psutil

    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def kernels_of(
    index: int, plan: PastePlan, options: PasteOptions, loader: Loader, spent: dict[str, float]
) -> None:
    """CPU seconds of one draw's kernels, added to ``spent``; draws until one passes the rules."""

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        spent[name] = spent.get(name, 0.0) + time.process_time() - start
        return result

    stages = (("load", LOAD), ("render", RENDER), ("score", (score,)))
    for attempt in range(options.attempts):
        sample = Sample(PasteContext(plan, options, "bench"), loader, index, attempt, [])
        for name, steps in stages:
            timed(name, partial(run_steps, steps, sample))
        try:
            check(sample)
        except Refused:
            continue
        timed("code", partial(encode, sample))
        return


def codec_table(videos: list[Path]) -> None:
    """Size, PSNR and CPU time of the media cells' settings on real frames."""
    for path in videos:
        video, _ = read_frames(path, max_frames=100_000)
        video = resize_cover(video[:16, ..., :3], 480, 720)
        print(f"{path.name}: {len(video)} frames of 480x720")
        for pix_fmt in ("yuv444p", "yuv420p"):
            for crf in (8, 10, 12, 14, 18):
                data = encode_color(video, 8, crf=crf, pix_fmt=pix_fmt)
                error = video.astype(np.int16) - decode_color(data)
                psnr = 10 * np.log10(255**2 / np.square(error, dtype=np.int32).mean())
                spent = cpu(partial(encode_color, video, 8, crf=crf, pix_fmt=pix_fmt), 1)
                read = cpu(partial(decode_color, data), 1)
                print(
                    f"  H.264 {pix_fmt} crf {crf:2d} {len(data) / 1e6:6.2f} MB {psnr:5.1f} dB "
                    f"encode {spent * 1e3:5.0f} ms decode {read * 1e3:4.0f} ms"
                )


if __name__ == "__main__":
    main()
