"""Layered stills: what one is made of, the layers it gives, a background where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from layerflow.clip import (
    ALPHA,
    BACKGROUND,
    BLENDED,
    FOREGROUND,
    PROMPTED,
    U8,
    LayeredClip,
    composite,
    resize_clip,
    resize_cover,
)
from layerflow.locations import root_of
from layerflow.media.cells import MediaError
from pipelines.inputs.layouts import Film, Group, words_of
from pipelines.inputs.metadata import said_of
from pipelines.inputs.mulan import merged, read_decomposed
from pipelines.inputs.prompts import RIGHTS, Table, sidecar
from pipelines.publish.licences import all_of
from pipelines.readers.photoshop import SUFFIXES as DOCUMENT_SUFFIXES
from pipelines.readers.photoshop import read_document
from pipelines.readers.stills import (
    check_alpha,
    load_cutout,
    load_opaque,
    load_pair,
    read_matte,
    read_still,
)
from pipelines.vision.composite import continued
from pipelines.vision.numerics import push_pull

Generator = np.random.Generator
FILLED_PROMPT = {"blurred": "a soft blurred background", "plain": "a plain background"}
ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Parts:
    """What was found of a still: straight uint8 ``[H, W, 4]``; background ``[H, W, 3]`` if known.

    behind: what ``background`` is (real | filled | inpainted), None when there is none yet.
    objects: single objects of the foreground, back to front, each with its caption. prompts: those
    that came with the layers.
    """

    rgba: U8
    background: U8 | None
    behind: str | None
    objects: tuple[tuple[str, U8], ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)


def read_parts(roles: Mapping[str, Path]) -> Parts:
    """The layers that the files of one group give. Raises MediaError.

    A whole picture with a matte shows the background around the object: what the object hides
    is filled smoothly. With its own background file the object's colour follows from both.
    """
    if "file" in roles and roles["file"].suffix.lower() in DOCUMENT_SUFFIXES:
        rgba, below = read_document(roles["file"])
        check_alpha(rgba[..., 3])
        return Parts(rgba, below, None if below is None else "real")
    if "annotation" in roles:
        found = read_decomposed(roles["annotation"], roles[BLENDED])
        rgba = found.instances[0] if len(found.instances) == 1 else merged(found.instances)
        check_alpha(rgba[..., 3])
        objects = tuple(zip(found.captions, found.instances, strict=True))
        return Parts(rgba, found.background, "inpainted", objects, found.prompts)
    own = load_opaque(roles[BACKGROUND]) if BACKGROUND in roles else None
    colour = roles.get(FOREGROUND, roles.get(BLENDED))
    alone = roles.get("file", roles.get(FOREGROUND, roles.get(BLENDED)))
    if ALPHA in roles and colour is not None:
        if FOREGROUND in roles:
            rgba = load_pair(roles[FOREGROUND], roles.get(BLENDED), roles[ALPHA])
        elif own is not None:
            rgba = _against(colour, roles[ALPHA], own)
        else:
            rgba = load_pair(None, colour, roles[ALPHA])
            picture = read_still(colour)[..., :3]
            return Parts(rgba, fill_behind(picture, rgba[..., 3]), "filled")
    elif alone is not None:
        rgba = load_cutout(alone)
    else:
        raise MediaError("has no picture with an alpha channel and no pair of picture and matte")
    if own is None:
        return Parts(rgba, None, None)
    return Parts(rgba, fitted(own, rgba.shape[:2]), "real")


def _against(picture: Path, matte: Path, background: U8) -> U8:
    """Colour from the whole picture, its matte and its own background."""
    from pipelines.vision.colour import estimate_foreground

    shown, alpha = read_still(picture)[..., :3], read_matte(matte)
    check_alpha(alpha)
    if alpha.shape != shown.shape[:2]:
        raise MediaError(f"{matte.name} and {picture.name} differ in size")
    behind = fitted(background, alpha.shape)
    return np.dstack([estimate_foreground(shown, alpha, behind), alpha])


def fitted(picture: U8, size: tuple[int, ...]) -> U8:
    """A picture at the size of its foreground; MediaError when its shape is another one."""
    height, width = picture.shape[:2]
    if abs(width / height / (size[1] / size[0]) - 1) > ASPECT_TOLERANCE:
        raise MediaError(
            f"the background is {width}x{height}, the foreground {size[1]}x{size[0]}: "
            "another aspect ratio"
        )
    fit: U8 = resize_cover(picture[None], size[0], size[1])[0]
    return fit


def fill_behind(picture: U8, alpha: U8) -> U8:
    """The picture uint8 ``[H, W, 3]`` with its object painted over from around it."""
    reach = max(2, round(max(alpha.shape) / 150))
    hidden = cv2.dilate((alpha > 0).astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8))
    if hidden.all():
        raise MediaError("the matte leaves nothing of the background to see")
    spread = push_pull(picture.astype(np.float32), (1 - hidden).astype(np.float32))
    soft = cv2.GaussianBlur(spread, (0, 0), reach)
    share = cv2.GaussianBlur(hidden.astype(np.float32), (0, 0), reach / 2)[..., None]
    mixed = np.where(alpha[..., None] > 0, soft, picture + share * (soft - picture))
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


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


def make_clip(
    parts: Parts,
    background: U8,
    behind: str,
    prompts: Mapping[str, str],
    size: Sequence[int] | None,
) -> LayeredClip:
    """An ``image`` clip whose layers satisfy the equation exactly, at ``size`` if given."""
    alpha = np.ascontiguousarray(parts.rgba[..., 3])
    foreground = continued(parts.rgba[..., :3], alpha)
    clip = LayeredClip(
        foreground=foreground[None],
        alpha=alpha[None],
        background=background[None],
        blended=composite(foreground, alpha, background)[None],
        prompts=dict(prompts),
        kind="image",
        alpha_kind="binary" if np.isin(alpha, (0, 255)).all() else "soft",
        background_kind=behind,
    )
    if size is None or tuple(size) == clip.size:
        return clip
    small = resize_clip(clip, size[0], size[1])
    binary = bool(np.isin(small.alpha, (0, 255)).all())
    return LayeredClip(
        foreground=small.foreground,
        alpha=small.alpha,
        background=small.background,
        blended=small.recomposed(),
        prompts=dict(prompts),
        kind="image",
        alpha_kind="binary" if binary else "soft",
        background_kind=behind,
    )


def still_prompts(
    group: Group, behind: str, table: Table, own: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Prompts of a still: from the table, a sidecar, its own annotation, or its file name.

    behind: what the background shows, if nothing better is known. Raises ValueError for a broken
    sidecar.
    """
    found = table.get(group.uri, {})
    given = {layer: found[layer] for layer in PROMPTED if found.get(layer)}
    roles = group.roles
    shown = [roles[r] for r in ("file", FOREGROUND, BLENDED, ALPHA) if r in roles]
    if shown:
        shown.append(shown[0].with_name(f"{group.name}.png"))  # x.json beside x_alpha.png
    for path in shown:
        for layer, text in sidecar(path, root_of(path, group.uri)).items():
            if layer in PROMPTED:
                given.setdefault(layer, text)
    behind_it = roles.get(BACKGROUND)
    scenery = {} if behind_it is None else sidecar(behind_it, root_of(behind_it, group.uri))
    if scenery:  # speaks of the background alone
        alone = scenery.get(BACKGROUND) or scenery.get(BLENDED)
        given.setdefault(BACKGROUND, alone or behind)
    for layer, text in (own or {}).items():
        if text:
            given.setdefault(layer, text)
    subject = given.get(FOREGROUND) or given.get(BLENDED) or words_of(group.name) or "an object"
    scene = given.get(BACKGROUND) or behind
    whole = given.get(BLENDED) or f"{subject}, {scene}"
    return {FOREGROUND: subject, BACKGROUND: scene, BLENDED: whole}


def clip_rights(
    made_of: Sequence[Group | Film], table: Table, default: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Licence and attribution of what a clip is made of: all of them hold.

    table: what is told by uri. default: of what states none itself.
    """
    stated = [
        said_of(entry.uri, entry.name, [path for _, path in entry.files], table.get(entry.uri))
        for entry in made_of
    ]
    return {
        name: all_of([held.get(name) or default[name] for held in stated], name) for name in RIGHTS
    }
