"""Do equal frames give equal bytes? Every encoder between random allocations; x264's settings.

    python -m bench.codec_bytes                        # distinct results of 50 encodes
    python -m bench.codec_bytes --videos FOLDER         # also time, size and PSNR of x264 settings

With AVX-512 and default settings x264 reads memory that nobody wrote, so its bytes depend on what
the heap held before. ``layerflow.media.cells`` sets ``cpu-independent``; the table shows why.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from layerflow.clip import U8
from layerflow.media import cells as media
from layerflow.media.video import fetch, scan

SETTINGS = ("", "cpu-independent=1", "asm=avx2", "mbtree=0", "asm=0", "cpu-independent=1:asm=0")


def scraps() -> list[U8]:
    """Blocks of random bytes with holes between them: what the heap held before."""
    random = np.random.default_rng()
    blocks = [random.integers(0, 256, random.integers(100, 400_000), np.uint8) for _ in range(60)]
    return blocks[::2]


def drawn(height: int, width: int, frames: int = 5) -> U8:
    random, ramp = np.random.default_rng(1), np.linspace(0, 255, width)
    video = np.empty((frames, height, width, 3))
    for t in range(frames):
        video[t] = np.stack([np.roll(ramp, 3 * t), ramp[::-1], np.full(width, 10 * t)], axis=-1)
    return (video + random.normal(0, 6, video.shape)).clip(0, 255).astype(np.uint8)


def in_file(write: Callable[[Path, U8, float], None], suffix: str) -> Callable[[U8], bytes]:
    def encode(frames: U8) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"video{suffix}"
            write(path, np.concatenate([frames, frames[..., :1]], axis=-1), 8)
            return path.read_bytes()

    return encode


def h264(frames: U8, params: str, *, crf: int, pix_fmt: str) -> bytes:
    """As ``media`` encodes colour cells (4:4:4) or previews, with other x264 parameters."""
    buffer = io.BytesIO()
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
    if pix_fmt == "yuv444p":
        options["bf"] = "0"
    if params:
        options["x264-params"] = params
    with av.open(buffer, "w", format="mp4", options=media.BITEXACT) as container:
        media._write_stream(container, frames, "rgb24", "libx264", pix_fmt, 8, options)
    return buffer.getvalue()


ENCODERS: dict[str, Callable[[U8], bytes]] = {
    "colour cell, H.264 4:4:4": lambda frames: media.encode_color(frames, 8),
    "preview, H.264 4:2:0": lambda frames: media.encode_preview(frames, 8),
    "the same, x264 as it comes": lambda frames: h264(frames, "", crf=22, pix_fmt="yuv420p"),
    "alpha cell, FFV1": lambda frames: media.encode_alpha(frames[..., 0], 8),
    "still, PNG": lambda frames: media.encode_png(frames[0]),
    "ProRes 4444": in_file(media.write_prores4444, ".mov"),
    "VP9 with alpha": in_file(media.write_vp9_alpha, ".webm"),
}


def distinct(repeat: int) -> None:
    for height, width in ((66, 98), (240, 360)):
        frames = drawn(height, width)
        for name, encode in ENCODERS.items():
            seen = set()
            for _ in range(repeat):
                kept = scraps()
                seen.add(hashlib.md5(encode(frames)).digest())
                del kept
            print(f"{height}x{width} {name}: {len(seen)} distinct of {repeat}", flush=True)


def settings(folder: Path) -> None:
    clips = []
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".mp4", ".webm", ".mkv")):
        times, _ = scan(path, 0, 3)
        chosen = [float(t) for t in times[:: max(1, len(times) // 16)][:16]]
        clips.append(fetch(path, chosen, 480, 720))
    for crf, pix_fmt in ((10, "yuv444p"), (22, "yuv420p")):
        for params in SETTINGS:
            seconds, size, quality = 0.0, 0, []
            for frames in clips:
                begun = time.process_time()
                data = h264(frames, params, crf=crf, pix_fmt=pix_fmt)
                seconds += time.process_time() - begun
                size += len(data)
                error = np.mean((media.decode_color(data).astype(float) - frames) ** 2)
                quality.append(10 * np.log10(255**2 / error))
            print(
                f"crf {crf} {pix_fmt} {params or 'as it comes'}: {seconds:.2f} s, "
                f"{size / 1e6:.3f} MB, {np.mean(quality):.2f} dB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--videos", type=Path)
    options = parser.parse_args()
    distinct(options.repeat)
    if options.videos is not None:
        settings(options.videos)


if __name__ == "__main__":
    main()
