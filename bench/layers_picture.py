"""The picture of one clip's layers in README.md: a drawn cut-out, pasted.

    python bench/layers_picture.py [--out docs/images/layers.png] [--seed 5]

The media come from `pipelines/procedural`, the layers from the paste job, the picture from
`layerflow/media/contact_sheet.py`: one row each for the first and last frame. The file has
128 colours, so that it is small.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

import layerflow
from layerflow.clip import LayeredClip
from layerflow.media.contact_sheet import contact_sheet
from pipelines.procedural.media import make_backgrounds, make_stills

ROW_HEIGHT, COLOURS = 140, 128


def pasted_clip(folder: Path, seed: int) -> LayeredClip:
    """A drawn cut-out pasted over a drawn background: 16 frames of 240x360, exact layers."""
    make_stills(folder / "cutouts", count=1, seed=seed, size=240, softness=0.12)
    make_backgrounds(folder / "plates", count=1, seed=seed, height=480, width=720, detail=0.15)
    layerflow.paste(
        folder / "cutouts",
        folder / "plates",
        folder / "pasted",
        count=1,
        seed=seed,
        size=(240, 360),
        placement="free",
        more={"area": (0.12, 0.2), "speed": (0.02, 0.025)},
        workers=0,
    )
    return layerflow.open_corpus(folder / "pasted").clip(0)


def picture(clip: LayeredClip) -> Image.Image:
    """First and last frame of all layers, as a picture of a few colours."""
    moments = (0, clip.num_frames - 1)
    labels = [f"frame {moment + 1} of {clip.num_frames}" for moment in moments]
    rows = [clip.take([moment]) for moment in moments]
    sheet = contact_sheet(rows, labels, columns_per_layer=1, height=ROW_HEIGHT)
    return Image.fromarray(sheet).quantize(COLOURS, method=Image.Quantize.MEDIANCUT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/layers.png"))
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = picture(pasted_clip(Path(folder), args.seed))
    image.save(args.out, optimize=True)
    print(f"{args.out}: {image.width}x{image.height}, {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
