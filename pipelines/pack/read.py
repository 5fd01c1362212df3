"""The first steps of a packed still: its files, its layers, a background where it has none."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import cv2
import numpy as np

from layerflow.clip import BACKGROUND, U8, resize_cover
from layerflow.media.cells import MediaError
from layerflow.seeds import generator
from pipelines.engine.steps import Refused
from pipelines.inputs.importers import load_importer
from pipelines.inputs.layouts import words_of
from pipelines.inputs.tables import said_by, write_cells
from pipelines.pack.describe import still_prompts
from pipelines.pack.still import Still
from pipelines.readers.animations import is_animation
from pipelines.readers.stills import load_opaque
from pipelines.readers.videos import LayeredVideoReader

Generator = np.random.Generator
FILLED_PROMPT = {"blurred": "a soft blurred background", "plain": "a plain background"}
MAX_DRAWS = 4  # of a background, when some cannot be read


def check_complete(still: Still) -> None:
    """Refuse what lacks a file that its layout needs."""
    if still.entry.problem is not None:
        raise Refused("read", still.entry.problem)


def unpack_row(still: Still) -> None:
    """Write the pictures of a table's row to files, and take its prompts and rights."""
    row = still.table_row
    if row is not None:
        still.entry = replace(still.entry, files=write_cells(row.part, row.cells, row.folder))
        still.said = said_by(row.part, row.cells)


def tell_videos(still: Still) -> None:
    """Tell videos from stills by what the files hold: a PNG may move, a GIF may stand still."""
    entry = still.entry
    paths = [path for _, path in entry.files]
    if entry.moving:
        gifs = len(entry.layers) == len(paths) and all(p.suffix.lower() == ".gif" for p in paths)
        moving = not gifs or any(map(is_animation, paths))
    else:
        moving = bool(paths) and is_animation(paths[0])
    still.entry = replace(entry, moving=moving)


def open_layers(still: Still) -> None:
    """Read the layers of a still, straight; open those of a video."""
    if still.entry.moving:
        still.video = LayeredVideoReader(still.entry.layers, still.decoder)
    else:
        still.layers = load_importer(still.entry.importer).read(still.entry.roles)
        still.background, still.behind = still.layers.background, still.layers.behind


def choose_background(still: Still) -> None:
    """Draw or make up a background for what shows none.

    The draw is a function of (seed, the still's uri). A drawn background that cannot be read is
    skipped for the next draw.
    """
    if still.behind is not None or (still.video is not None and still.video.shows_scene):
        return
    rgba, options, pool = _first_frame(still), still.options, still.context.plan.pool
    number = int.from_bytes(hashlib.sha256(still.entry.uri.encode()).digest()[:6], "big")
    for attempt in range(MAX_DRAWS if pool else 0):
        rng = generator(options.seed, number, "background", attempt)
        drawn = pool[int(rng.integers(len(pool)))]
        try:
            picture = load_opaque(drawn.files[0][1])
        except MediaError:
            continue
        still.background, still.behind = resize_cover(picture[None], *rgba.shape[:2])[0], "real"
        scene = still_prompts(drawn, {}, "")[BACKGROUND]
        still.scene, still.drawn = scene or words_of(drawn.name) or "a scene", drawn
        return
    rng = generator(options.seed, number, "fill")
    still.background, still.behind = made_up_background(rgba, options.fill, rng), "filled"
    still.scene = FILLED_PROMPT[options.fill]


def _first_frame(still: Still) -> U8:
    """The object alone: straight uint8 ``[H, W, 4]``."""
    if still.layers is not None:
        return still.layers.rgba
    assert still.video is not None
    return still.video.cutout([0], still.read_size)[0]


def made_up_background(rgba: U8, fill: str, rng: Generator) -> U8:
    """A background for a cut-out that has none: ``plain`` or soft patches of colour, uint8.

    Its lightness keeps away from the object's own mean.
    """
    height, width = rgba.shape[:2]
    weight = rgba[..., 3].astype(np.float32)
    grey = cv2.cvtColor(np.ascontiguousarray(rgba[..., :3]), cv2.COLOR_RGB2GRAY)
    mean = float((grey * weight).sum() / max(float(weight.sum()), 1.0))
    level = mean + (rng.uniform(60, 100) if mean < 128 else -rng.uniform(60, 100))
    tint = rng.uniform(-18, 18, 3)
    if fill == "plain":
        return np.broadcast_to(_u8(level + tint), (height, width, 3)).copy()
    columns = max(2, round(4 * width / max(height, width)))
    rows = max(2, round(4 * height / max(height, width)))
    patches = level + tint + rng.uniform(-28, 28, (rows, columns, 1))
    patches = patches + rng.uniform(-7, 7, (rows, columns, 3))
    grown = cv2.resize(patches.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return _u8(grown)


def _u8(values: np.ndarray) -> U8:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
