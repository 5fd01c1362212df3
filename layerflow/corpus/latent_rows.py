"""Rows of the latents store (``layerflow.corpus.latents``): columns, and how they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from layerflow.layer_set import LayerSet, layer_set
from layerflow.media.known import KNOWN

NO_LOGVAR = -30.0  # log-variance of an autoencoder without a posterior: exp(-15) is nothing
DTYPES: dict[str, np.dtype] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}

DRAWN = "drawn.json"
"""In a latents folder: which draws are in it. In a staged unit: what was drawn."""
ORIGINS = "origins.jsonl"
"""In a latents folder of drawn clips: ``id`` and ``origin`` of each, since no corpus has them."""

_ABOUT = [
    ("id", pa.string()),
    ("source", pa.string()),  # the corpus row's id; `id` adds the augmentation
    ("content", pa.string()),  # hash of that row's media and prompts: what is up to date
    ("kind", pa.string()),
    ("alpha_kind", pa.string()),
    ("origin_group", pa.string()),
    ("latent_frames", pa.int32()),
    ("latent_channels", pa.int32()),
    ("latent_height", pa.int32()),
    ("latent_width", pa.int32()),
    ("num_frames", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("fps", pa.float32()),
    ("dtype", pa.string()),
]
PROMPTS = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("width", pa.int32()),
        ("dtype", pa.string()),
        ("embedding", pa.large_binary()),
    ]
)


def clips_schema(layers: LayerSet) -> pa.Schema:
    """The columns of `clips/` for a set of layers.

    The last one is uint8 ``[n, f, h, w]`` of the n layers that a row has, 1 where a cell is known
    and 0 where not; null: all are known. The first stores did not have it.
    """
    counted = [] if layers == RGBA else [("foregrounds", pa.int32())]
    media = [(layer, pa.large_binary()) for layer in layers.layers]
    prompts = [(f"{layer}_prompt", pa.string()) for layer in layers.prompted]
    return pa.schema([*_ABOUT, *counted, *media, *prompts, (KNOWN, pa.large_binary())])


RGBA = layer_set("rgba")
CLIPS = clips_schema(RGBA)


def prompt_key(prefixed: str) -> str:
    """Key of a prompt: sha256 of the prefixed text, as hex; of an empty one: the empty string."""
    return hashlib.sha256(prefixed.encode()).hexdigest() if prefixed else ""


def clip_row(
    moments: Mapping[str, NDArray[np.floating]],
    *,
    dtype: str = "float32",
    layers: LayerSet = RGBA,
    known: NDArray[np.uint8] | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """A row of `clips/`.

    moments: layer -> ``[2C, f, h, w]``, all of one shape; layers: the set, of which the row has the
    first foregrounds. dtype: ``float16`` or ``float32``. known: ``[n, f, h, w]``, 1 or 0, what of
    its layers is known; None: all. columns: the remaining columns (`id`, `kind`, ...); prompts of
    absent layers may be left out. ValueError for what does not fit.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {sorted(DTYPES)}, not {dtype!r}")
    count = sum(layer in moments for layer in layers.foregrounds)
    present = layers.with_foregrounds(max(1, count))
    if set(moments) != set(present):
        raise ValueError(f"a row of {layers.name} has {present}, not {tuple(moments)}")
    shapes = {layer: moments[layer].shape for layer in present}
    shape = shapes[present[0]]
    if len(set(shapes.values())) != 1 or len(shape) != 4 or shape[0] % 2:
        raise ValueError(f"moments must be [2C, f, h, w], one shape for all layers, not {shapes}")
    if known is not None and known.shape != (len(present), *shape[1:]):
        raise ValueError(f"known must be {[len(present), *shape[1:]]}, not {list(known.shape)}")
    absent = set(layers.layers) - set(present)
    row: dict[str, Any] = {
        **dict.fromkeys((f"{layer}_prompt" for layer in absent & set(layers.prompted)), ""),
        **columns,
        **({} if layers == RGBA else {"foregrounds": count}),
        "latent_channels": shape[0] // 2,
        "latent_frames": shape[1],
        "latent_height": shape[2],
        "latent_width": shape[3],
        "dtype": dtype,
        **{layer: _bytes(moments[layer], dtype, layer) for layer in present},
        **dict.fromkeys(absent),
        KNOWN: None if known is None else (known != 0).astype(np.uint8).tobytes(),
    }
    missing = set(clips_schema(layers).names) - set(row)
    if missing:
        raise ValueError(f"a row of latents needs {sorted(missing)}")
    return row


def prompt_row(
    text: str, embedding: NDArray[np.floating], *, dtype: str = "float32"
) -> dict[str, Any]:
    """A row of `prompts/`: the prefixed text and its embedding ``[tokens, width]``."""
    tokens, width = embedding.shape
    return {
        "key": prompt_key(text),
        "text": text,
        "tokens": tokens,
        "width": width,
        "dtype": dtype,
        "embedding": _bytes(embedding, dtype, "prompt"),
    }


def _bytes(values: NDArray[np.floating], dtype: str, what: str) -> bytes:
    with np.errstate(over="ignore"):  # said below, in our words
        raw = np.ascontiguousarray(values, DTYPES[dtype])
    if not np.isfinite(raw).all():
        raise ValueError(f"{what}: the values are not all finite as {dtype}")
    return raw.tobytes()


def stored_layers(fingerprint: Mapping[str, Any]) -> LayerSet:
    """The set of layers that a store's fingerprint says; ValueError for a name that is none."""
    name = fingerprint.get("layers", RGBA.name)
    return layer_set(name if isinstance(name, str) else repr(name)[:40])
