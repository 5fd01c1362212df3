"""What encode does to one clip: decode, augment, take frames, resize, autoencoder."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import U8, LayeredClip
from layerflow.corpus.latents import clip_row, prompt_key, prompt_row
from layerflow.corpus.row_check import check_equation, check_unread
from layerflow.corpus.row_stack import frames_of, stack_of_row, stacks_of
from layerflow.corpus.table import decode_row
from layerflow.layer_set import LayerSet, layer_set
from layerflow.media.cells import Bounds, MediaError
from layerflow.media.isolate import call, caller
from layerflow.media.known import KNOWN, decode_known, latent_known, resize_known
from layerflow.media.layer_stack import LayerStack
from layerflow.media.sandbox import Contained
from layerflow.seeds import generator_of
from pipelines.encode.buckets import Bucket, bucket_of
from pipelines.encode.models import ENCODE, Models, models_of
from pipelines.engine.networks import network

MAX_FRAMES = 10_000  # of one clip
SHARED_BYTES = 512 << 20  # pictures of one row; those of a larger one go through a pipe


@dataclass(frozen=True)
class Augment:
    """Variants of each clip, all of them deterministic.

    flip: also mirrored left to right. reverse: also backwards in time (not for stills).
    crops: also that many windows of the target's aspect, `min_crop` to 1 of the largest one.
    The numbers multiply: flip, reverse and 3 crops make 16 clips of one.
    freeze: instead of a moving clip, that many random frames of it, each as a still. The motion
    stage trains on them; where an autoencoder compresses time, no frame of a moving clip's latents
    is what a still gives.
    """

    flip: bool = False
    reverse: bool = False
    crops: int = 0
    min_crop: float = 0.7
    freeze: int = 0

    def __post_init__(self) -> None:
        if self.crops < 0 or self.freeze < 0 or not 0 < self.min_crop <= 1:
            raise ValueError(
                f"crops and freeze must be 0 or more and min_crop in (0, 1], not {self}"
            )


@dataclass(frozen=True)
class Variant:
    frame: int = 0  # 0: the moving clip
    crop: int = 0  # 0: none
    flip: bool = False
    reverse: bool = False

    @property
    def suffix(self) -> str:
        """What the variant adds to the clip's id; empty for the clip itself."""
        parts = [f"s{self.frame}" * bool(self.frame)]
        parts += [f"c{self.crop}" * bool(self.crop), "f" * self.flip, "r" * self.reverse]
        return "".join(f"-{part}" for part in parts if part)


def variants(kind: str, augment: Augment) -> list[Variant]:
    """The variants of a clip, the clip itself first."""
    frozen = bool(augment.freeze) and kind != "image"
    choices = itertools.product(
        range(1, augment.freeze + 1) if frozen else (0,),
        range(augment.crops + 1),
        (False, True) if augment.flip else (False,),
        (False, True) if augment.reverse and kind != "image" and not frozen else (False,),
    )
    return [Variant(*choice) for choice in choices]


@dataclass(frozen=True)
class Options:
    """What the latents depend on, besides the clips. layers: name of the set. precision: that the
    models compute in. tiling: whether the autoencoder works tile by tile. buckets: each clip's size
    and frames are those of one of them."""

    model: str
    size: tuple[int, int] | None = None
    frames: int | None = None
    dtype: str = "float32"
    augment: Augment = field(default_factory=Augment)
    layers: str = "rgba"
    precision: str = "float32"
    tiling: bool = False
    buckets: tuple[Bucket, ...] = ()

    @property
    def set(self) -> LayerSet:
        return layer_set(self.layers)

    def of(self, row: Mapping[str, Any]) -> Options:
        """The same with the size and frames of the row's bucket, where there are buckets.
        MediaError for a row that fills none."""
        if not self.buckets:
            return self
        bucket = bucket_of(row, self.buckets, stills=bool(self.augment.freeze))
        return replace(self, size=bucket.size, frames=bucket.frames, buckets=())


class Encoder:
    """What makes rows of latents, in a worker: its models may be those of an actor."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @cached_property
    def cell(self) -> tuple[int, int]:
        """Of ``models``: asked for once, not with every clip."""
        found: tuple[int, int] = self.models.cell
        return found

    @property
    def models(self) -> Models:
        """Asked for again each time: a worker may serve another job later."""
        found: Models = network(ENCODE, models_of, self.options, methods=("embeddings", "moments"))
        return found

    @cached_property
    def reader(self) -> Contained:
        """The child process that decodes and resizes, kept for all rows of this process."""
        return Contained(caller, Path(), writes=False, shared=SHARED_BYTES)

    def check(self) -> None:
        """ValueError if the autoencoder cannot take the frames or sizes that are asked for."""
        from layerflow.model.autoencoder import check_frames, spatial_factor

        options, vae = self.options, Models(self.options).vae
        factor = spatial_factor(vae)
        for frames in (options.frames, *(bucket.frames for bucket in options.buckets)):
            if frames:
                check_frames(vae, frames)
        for size in (options.size, *(bucket.size for bucket in options.buckets)):
            if size and any(side % factor for side in size):
                shown = "x".join(map(str, size))
                raise ValueError(f"sizes must be multiples of {factor}, not {shown}")

    def prompts(self, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Rows of `prompts/` for prefixed texts."""
        embeddings = self.models.embeddings(list(texts))
        for text, embedding in zip(texts, embeddings, strict=True):
            yield prompt_row(text, embedding, dtype=self.options.dtype)

    def clip(self, row: Mapping[str, Any], about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of `clips/` for a corpus row: one for each variant.

        about: its `content` hash and prefixed `prompts`. ValueError for a clip that cannot be
        decoded, has too few frames, or does not fit the autoencoder.
        """
        pictures = self.pictures(row)
        return self.rows(row, about, pictures, self.known(row, pictures[0].names))

    def rows(
        self,
        row: Mapping[str, Any],
        about: Mapping[str, Any],
        pictures: Sequence[LayerStack],
        masks: Sequence[U8 | None],
    ) -> list[dict[str, Any]]:
        """``clip`` of a row whose variants are at hand, with what is known of each one's latents.

        row: `id`, `kind` and `origin` of a corpus row."""
        chosen = variants(row["kind"], self.options.augment)
        length = pictures[0].num_frames
        names = pictures[0].prompted
        keys = [prompt_key(text) for text in about["prompts"]]
        return [
            clip_row(
                dict(zip(picture.names, moments, strict=True)),
                dtype=self.options.dtype,
                layers=self.options.set,
                known=mask,
                id=row["id"] + variant.suffix,
                source=row["id"],
                content=about["content"],
                kind=picture.kind,
                alpha_kind=picture.alpha_kind,
                origin_group=origin_group(row["origin"]),
                num_frames=length,
                height=picture.size[0],
                width=picture.size[1],
                fps=picture.fps,
                **{f"{layer}_prompt": key for layer, key in zip(names, keys, strict=True)},
            )
            for variant, picture, moments, mask in zip(
                chosen, pictures, self.models.moments(pictures), masks, strict=True
            )
        ]

    def pictures(self, row: Mapping[str, Any]) -> list[LayerStack]:
        """``pictures_of`` a corpus row, made in the child process."""
        answer = call(self.reader, _pictures, dict(row), self.options)
        return stacks_of(row, answer, self.options.set)

    def known(self, row: Mapping[str, Any], layers: Sequence[str]) -> list[U8 | None]:
        """What is known of each variant's latents, uint8 ``[n, f, h, w]``; None where all is.

        layers: names of the n layers.
        """
        if row.get(KNOWN) is None:
            return [None] * len(variants(row["kind"], self.options.augment))
        cells = self.cell
        pictures = call(self.reader, known_pictures, dict(row), self.options)
        masks = [latent_known(picture, layers, *cells) for picture in pictures]
        return [None if mask.all() else mask for mask in masks]


def _pictures(row: dict[str, Any], options: Options) -> list[tuple[dict[str, U8], float, str]]:
    return [frames_of(stack) for stack in pictures_of(row, options)]


def known_pictures(row: Mapping[str, Any], options: Options) -> list[U8]:
    """The column ``known`` of a row, which has one, as its ``pictures_of`` are: uint8 ``[T, H, W]``
    each. MediaError for a damaged one."""
    options = options.of(row)
    known = decode_known(row[KNOWN], Bounds.of(row), kept_frames(row, options))
    own, least = known.shape[1:3], options.augment.min_crop
    size = options.size or own
    return [
        resize_known(view(variant, own, size, least, row["id"])(known), *size)
        for variant in variants(row["kind"], options.augment)
    ]


def pictures_of(row: Mapping[str, Any], options: Options) -> list[LayerStack]:
    """Every variant of a corpus row as it goes into the autoencoder, decoded in this process.

    MediaError for a row that `layerflow validate` refuses, and for one with too few frames.
    """
    check_unread(row)
    options = options.of(row)
    keep = kept_frames(row, options)
    clip = decode_frames(row, keep)
    if row["kind"] != "mined":  # what a mined clip shows need not be its layers exactly
        check_equation(row, clip)
    return varied(stack_of_row(row, clip, options.set, keep), row["id"], options)


def varied(stack: LayerStack, id_: str, options: Options) -> list[LayerStack]:
    """Every variant of a clip with the kept frames, as it goes into the autoencoder."""
    augment, size = options.augment, options.size or stack.size
    return [vary(stack, v, size, augment.min_crop, id_) for v in variants(stack.kind, augment)]


def origin_group(origin: Mapping[str, Any]) -> str:
    """What clips of one origin share, to hold them out together: their sources, hashed."""
    sources = sorted([origin.get("sha256") or origin.get("uri") or "", *(origin["parents"] or [])])
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def even_frames(count: int, wanted: int) -> list[int]:
    """`wanted` distinct indices spread evenly over `count` frames, in the middle of equal parts."""
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def kept_frames(row: Mapping[str, Any], options: Options) -> list[int]:
    """Which frames of a row are encoded. MediaError for one with too few."""
    if options.augment.freeze and row["kind"] != "image":
        return frozen_frames(row, options.augment.freeze)
    return chosen_frames(row, options.frames)


def decode(row: Mapping[str, Any], frames: int | None) -> LayeredClip:
    """The clip of a corpus row with `frames` of its frames (None: all; stills stay single).

    Only the chosen frames are converted, which is most of the work at small sizes. MediaError
    for damaged media and for a clip with fewer frames.
    """
    return decode_frames(row, chosen_frames(row, frames))


def chosen_frames(row: Mapping[str, Any], frames: int | None) -> list[int]:
    """Which frames of a row are taken; see ``decode``. MediaError for one with fewer."""
    count = row["num_frames"]
    if not 1 <= count <= MAX_FRAMES:
        raise MediaError(f"clip {row['id']} says that it has {count} frames")
    if row["kind"] == "image":
        return [0]
    if frames is None:
        return list(range(count))
    if frames > count:
        raise MediaError(f"clip {row['id']} has {count} frames, {frames} are asked for")
    return even_frames(count, frames)


def frozen_frames(row: Mapping[str, Any], wanted: int) -> list[int]:
    """Which frames of a clip to show frozen: random ones that follow from its id."""
    rng = generator_of(f"{row['id']}-frozen")
    return [int(frame) for frame in rng.integers(0, max(1, row["num_frames"]), wanted)]


def decode_frames(row: Mapping[str, Any], keep: Sequence[int]) -> LayeredClip:
    """The clip of a corpus row with the frames `keep`, in that order."""
    clip = decode_row(row, keep)
    fps = row["fps"] * len(keep) / max(1, row["num_frames"])
    prompts = {layer: text or "" for layer, text in clip.prompts.items()}
    return replace(clip, fps=fps, prompts=prompts)


def vary(
    stack: LayerStack, variant: Variant, size: tuple[int, int], min_crop: float, id_: str
) -> LayerStack:
    """One variant of a clip at `size`."""
    return stack.each(view(variant, stack.size, size, min_crop, id_)).resized(*size)


def view(
    variant: Variant, own: tuple[int, int], size: tuple[int, int], min_crop: float, id_: str
) -> Callable[[U8], U8]:
    """What a variant shows of any layer's frames ``[T, H, W, ...]``, before they are resized.

    own: H and W. The window of a crop depends on the id and its number.
    """
    window = [slice(variant.frame - 1, variant.frame) if variant.frame else slice(None)]
    if variant.crop:
        chance = generator_of(f"{id_}-{variant.crop}").random(3).tolist()
        top, left, height, width = crop_window(own, size, min_crop, chance)
        window += [slice(top, top + height), slice(left, left + width)]

    def show(layer: U8) -> U8:
        layer = layer[tuple(window)]
        layer = layer[:, :, ::-1] if variant.flip else layer
        return np.ascontiguousarray(layer[::-1] if variant.reverse else layer)

    return show


def crop_window(
    size: tuple[int, int], target: tuple[int, int], min_crop: float, chance: Sequence[float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a window of the target's aspect.

    chance: three numbers in [0, 1) for scale, top and left. Scale 1 is the largest window.
    """
    largest = min(size[0] / target[0], size[1] / target[1])
    scale = largest * (min_crop + (1 - min_crop) * chance[0])
    height = min(size[0], max(1, round(target[0] * scale)))
    width = min(size[1], max(1, round(target[1] * scale)))
    top = int(chance[1] * (size[0] - height + 1))
    left = int(chance[2] * (size[1] - width + 1))
    return top, left, height, width
