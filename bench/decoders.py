"""Seconds to read windows of videos with PyAV (what ``fetch`` does) and with decord, one thread.

    python bench/decoders.py FOLDER

For every video: three windows of 16 frames at 8 frames/s (start, middle, end) at 480x720, the best
of three, and whether decord's pictures are those of PyAV.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from layerflow.clip import U8
from layerflow.media import video
from layerflow.media.cells import MediaError
from layerflow.media.reader import close_kept

SIZE = 480, 720
SAME = 1.0  # mean levels by which two decoders may convert a picture's colours differently


def decord_frames(path: Path, times: np.ndarray) -> None:
    """What decord needs for one window: open, index, seek, decode, scale."""
    import decord

    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
    for place in video.nearest(np.sort(stamps) - stamps.min(), times):
        video.fit(reader[int(place)].asnumpy(), *SIZE, None)


def witness(path: Path, times: Sequence[float], height: int, width: int) -> U8 | None:
    """decord's frames at these times if each was seen to be PyAV's picture, else None."""
    import decord  # not at the top: loaded before OpenCV, its zlib breaks OpenCV's PNG

    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
        order = np.argsort(stamps, kind="stable")
        places = video.nearest(stamps[order] - stamps.min(), np.asarray(times, np.float64))
        frames = np.stack(
            [video.fit(reader[int(order[k])].asnumpy(), height, width, None) for k in places]
        )
    except (decord.DECORDError, RuntimeError, IndexError, ValueError):
        return None
    far = np.abs(frames.astype(np.int16) - video.fetch(path, times, height, width)).mean((1, 2, 3))
    return frames if far.max() <= SAME else None


def pyav_frames(path: Path, times: np.ndarray) -> None:
    """The same with PyAV, from a closed file."""
    close_kept()
    video.fetch(path, times.tolist(), *SIZE)


def seconds(read: Callable[[Path, np.ndarray], None], path: Path, windows: list) -> float:
    """The best of three."""
    found = []
    for _ in range(3):
        start = time.process_time()
        for times in windows:
            read(path, times)
        found.append(time.process_time() - start)
    return min(found)


def main(folder: Path) -> None:
    """One line a video."""
    for path in sorted(folder.iterdir()):
        try:
            info, times = video.probe(path), video.scan(path)[0]
        except MediaError:
            continue
        step = max(1, round(info.fps / 8))
        firsts = (0, len(times) // 2, max(0, len(times) - 16 * step))
        windows = [times[first : first + 16 * step : step][:16] for first in firsts]
        pyav = seconds(pyav_frames, path, windows)
        line = f"{path.name:22} {info.codec:8} {info.height:4}x{info.width:<4} PyAV {pyav:.3f} s"
        try:
            other = seconds(decord_frames, path, windows)
        except Exception as error:  # decord raises many kinds
            print(f"{line}  decord fails: {str(error)[:60]}", flush=True)
            continue
        same = all(witness(path, list(part), *SIZE) is not None for part in windows)
        verdict = "the same pictures" if same else "other pictures"
        print(f"{line}  decord {other:.3f} s, {verdict}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
