"""Columns that a corpus may have beyond the four layers: who owns the shadow, the plate without it,
the single objects of a foreground, and what was drawn for a pasted clip.

- ``shadow``: ``none`` or ``background``. With ``background`` the stored background carries the
  foreground's contact shadow, so that ``blended`` is still ``alpha*foreground +
  (1-alpha)*background``, and ``plate`` is the same background without it.
- ``objects``: of a foreground made of several, back to front: ``order`` (0 is the hindmost), its
  ``prompt`` and ``origin``, ``visible_alpha`` (what the others leave to be seen of it; all of them
  add up to ``alpha``) and ``amodal_alpha`` (its own, as if nothing stood before it).
- ``draw``: JSON of every random draw and measured match of a pasted clip.

Any of these is null where it does not apply, and missing in corpora of jobs that never fill it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from layerflow.clip import U8
from layerflow.corpus.table import EXTRAS, QUALITY
from layerflow.media.cells import Bounds, decode_alpha, encode_alpha, encode_png

SHADOWS = ("none", "background")


@dataclass(frozen=True)
class SingleObject:
    """One object of a foreground. visible, amodal: uint8 ``[T, H, W]``; origin as of a row."""

    order: int
    prompt: str
    visible: U8
    amodal: U8
    origin: Mapping[str, Any]


def encode_objects(
    objects: Sequence[SingleObject], fps: float, *, still: bool = False
) -> list[dict[str, Any]]:
    """The ``objects`` cell of a row; lossless, as the alpha layer."""

    def cell(alpha: U8) -> bytes:
        return encode_png(alpha[0]) if still else encode_alpha(alpha, fps)

    return [
        {
            "order": item.order,
            "prompt": item.prompt,
            "visible_alpha": cell(item.visible),
            "amodal_alpha": cell(item.amodal),
            "origin": dict(item.origin),
        }
        for item in objects
    ]


def decode_objects(row: Mapping[str, Any]) -> list[SingleObject]:
    """The single objects of a row, back to front; empty when it has none on record.

    Raises MediaError for a damaged cell.
    """
    bounds = Bounds.of(row)
    return [
        SingleObject(
            item["order"],
            item["prompt"] or "",
            decode_alpha(item["visible_alpha"], bounds),
            decode_alpha(item["amodal_alpha"], bounds),
            item["origin"],
        )
        for item in row.get("objects") or ()
    ]


def visible_alphas(alphas: Sequence[U8]) -> list[U8]:
    """Own alphas uint8, back to front -> what is seen of each; they add up to the merged alpha.

    Object i shows ``a_i * prod(1 - a_j)`` over the objects j before it. Rounding is cumulative
    from the front, so that the sum is exact.
    """
    clear = np.ones(alphas[0].shape, np.float64)
    below = np.zeros(alphas[0].shape, np.int32)
    out: list[U8] = []
    for alpha in reversed(alphas):
        clear = clear * (1 - alpha.astype(np.float64) / 255)
        covered = np.rint((1 - clear) * 255).astype(np.int32)
        out.append((covered - below).astype(np.uint8))
        below = covered
    return out[::-1]


def joined_schema(schemas: Sequence[pa.Schema]) -> pa.Schema | None:
    """The columns of corpora put together; None when they differ in more than ``EXTRAS`` and in
    scores that one was made too early to have."""
    extras = set(EXTRAS.names)
    schemas = [_with_all_scores(schema) for schema in schemas]
    plain = [[field for field in schema if field.name not in extras] for schema in schemas]
    if any(fields != plain[0] for fields in plain):
        return None
    found: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            if found.setdefault(field.name, field) != field:
                return None
    return pa.schema([*plain[0], *(found[name] for name in EXTRAS.names if name in found)])


def _with_all_scores(schema: pa.Schema) -> pa.Schema:
    """The schema with every score of this version, if it has some of them and no other."""
    at = schema.get_field_index("quality")
    if at < 0 or not pa.types.is_struct(schema.types[at]):
        return schema
    if not set(schema.types[at]) <= set(QUALITY):
        return schema
    return schema.set(at, schema.field(at).with_type(QUALITY))


def cells(row: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every media cell of a row beyond its layers."""
    if row.get("plate") is not None:
        yield "plate", row["plate"]
    for item in row.get("objects") or ():
        for name in ("visible_alpha", "amodal_alpha"):
            yield f"objects.{item['order']}.{name}", item[name] or b""
