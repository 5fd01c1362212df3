"""Pasted clips for training: drawn for the autoencoder, against stored and read again.

Run: ``python -m bench.scale.direct [--clips N] [--turns N]``. The ways alternate over the same
draws, 16 frames of 480x720 by default; CPU time of this process and its decoding child's wall time
are those of one core. The autoencoder, which both feed alike, is not run. Stored: draw, code, check
what was coded (the default), decode, resize as ``encode`` does, in this process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.paste import make_sources
from manifests.paste import PasteOptions
from pipelines.encode.clip_latents import Options, pictures_of
from pipelines.encode.drawn import drawn
from pipelines.paste.job import STEPS, draw_unit
from pipelines.paste.plan import make_plan
from pipelines.paste.sample import PasteContext


def spent(work: Any) -> float:
    """CPU seconds of one call in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="480x720")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    said = parser.parse_args()
    height, width = (int(side) for side in said.size.split("x"))
    options = Options("no model")
    with tempfile.TemporaryDirectory() as folder:
        foregrounds, backgrounds = make_sources(Path(folder), height, width)
        content = {
            "foregrounds": [str(foregrounds)],
            "backgrounds": [str(backgrounds)],
            "out": folder + "/out",
            "count": said.clips,
            "seed": 1,
            "size": said.size,
            "frames": said.frames,
        }
        paste = PasteOptions.model_validate(content)
        context = PasteContext(make_plan(paste), paste, "bench")
        payload = {"start": 0, "stop": said.clips}
        draws = partial(draw_unit, payload, context)

        def stored() -> None:
            for sample in draws([], STEPS):
                pictures_of(sample.row, options)

        def direct() -> None:
            for sample in draws([]):
                drawn(sample, options)

        direct()  # what loads once
        ratios, ways = [], dict[str, list[float]]()
        for _ in range(said.turns):
            both = [spent(stored) / said.clips, spent(direct) / said.clips]
            ratios.append(both[0] / both[1])
            for name, seconds in zip(("stored", "direct"), both, strict=True):
                ways.setdefault(name, []).append(seconds)
                print(f"  {name}: {seconds:.3f} s of CPU a clip", flush=True)
    for name, seconds in ways.items():
        middle = float(np.median(seconds))
        print(f"{name}: {middle:.3f} s a clip, {1 / middle:.2f} clips/s on a core")
    print(f"direct is {np.median(ratios):.1f} times as fast (median of {said.turns} turns)")


if __name__ == "__main__":
    main()
