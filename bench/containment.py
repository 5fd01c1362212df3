"""What decoding in a child process costs, in processor time, against the same work in one process.

    python bench/containment.py [--size 480x720] [--encode 480x720] [--rows 4] [--pairs 9]

Encode: rows of a corpus through decoding, resizing and the block-DCT autoencoder, the cheapest
there is, so that the child's share is at its largest. Publish: the mosaics of its previews. Both
are run in pairs, contained and not in turn; the ratio is the median of the pairs' ratios of
processor time (of both processes, so that other work on the machine matters little). Starting the
child, which a worker does once, is measured apart.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import LayeredClip, composite
from layerflow.corpus.table import SCHEMA, Corpus, encode_row, origin
from layerflow.corpus.writer import write_table
from layerflow.media.sandbox import Contained
from layerflow.model.presets import init_directory
from pipelines.encode.clip_latents import Encoder, Options, pictures_of
from pipelines.publish.preview import mosaic_maker

FRAMES = 16


def make_clip(seed: int, height: int, width: int) -> LayeredClip:
    """A disc with texture that crosses a textured ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ground = 127 + 60 * np.sin(x / 17 + seed) * np.cos(y / 13) + rng.normal(0, 3, (height, width))
    background = np.clip(ground, 0, 255).astype(np.uint8)[None, ..., None]
    background = np.broadcast_to(background, (FRAMES, height, width, 3)).copy()
    foreground = np.roll(background[:, ::-1], 40, axis=3)
    centre = width * (0.25 + 0.5 * np.arange(FRAMES) / FRAMES)[:, None, None]
    alpha = np.clip((height / 4 - np.hypot(x - centre, y - height / 2)) * 60 + 128, 0, 255)
    alpha = alpha.astype(np.uint8)
    return LayeredClip(foreground, alpha, background, composite(foreground, alpha, background))


def spent(child: Contained | None) -> float:
    """Processor seconds of this process and the child."""
    total = time.process_time()
    if child is not None and child.pid is not None:
        total += time.clock_gettime(((~child.pid) << 3) | 2)  # Linux: the clock of that process
    return total


def paired(
    name: str, child: Contained, inside: Callable[[], Any], outside: Callable[[], Any], pairs: int
) -> None:
    before = spent(child)
    inside()  # starts the child
    first = spent(child) - before
    outside()
    ratios, alone = [], []
    for number in range(pairs):
        times = {}
        for contained in (number % 2 == 0, number % 2 != 0):
            before = spent(child)
            (inside if contained else outside)()
            times[contained] = spent(child) - before
        ratios.append(times[True] / times[False])
        alone.append(times[False])
    start = first - float(np.median(alone)) * float(np.median(ratios))
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    print(
        f"{name}: contained costs {middle:.3f} of the same work in one process "
        f"({low:.3f} to {high:.3f}), which takes {np.median(alone):.2f} s; once {start:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="480x720", help="of the corpus")
    parser.add_argument("--encode", default="480x720", help="of the latents")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=9)
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    target = tuple(map(int, arguments.encode.split("x")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus"
        made = [
            encode_row(
                make_clip(seed, height, width),
                id=f"{seed:016x}", origin=origin("a.mp4", "0" * 64), quality={}, recipe="r",
            )
            for seed in range(arguments.rows)
        ]  # fmt: skip
        write_table(path, made, SCHEMA)
        corpus = Corpus.open(path)
        options = Options(
            str(init_directory(Path(folder) / "model", "tiny")),
            (target[0], target[1]),
            None,
            "float16",
        )
        encoder = Encoder(options)
        about = {"content": "", "prompts": ("", "", "")}

        def encode() -> None:
            for index in range(len(corpus)):
                encoder.clip(corpus.row(index), about)

        def encode_alone() -> None:
            encoder.pictures = lambda row: pictures_of(row, options)  # type: ignore[method-assign]
            encode()
            del encoder.pictures

        print(f"{arguments.rows} rows of {FRAMES} frames, load {os.getloadavg()[0]:.1f}")
        name = f"encode {arguments.size} to {arguments.encode}"
        paired(name, encoder.reader, encode, encode_alone, arguments.pairs)
        encoder.reader.stop()
        maker, child = mosaic_maker(path), Contained(mosaic_maker, path)
        requests = [json.dumps(index).encode() for index in range(len(corpus))]
        paired(
            f"previews of {arguments.size}",
            child,
            lambda: [child.call(request) for request in requests],
            lambda: [maker(request) for request in requests],
            arguments.pairs,
        )
        child.stop()


if __name__ == "__main__":
    main()
