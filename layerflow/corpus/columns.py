"""The columns of a corpus: type, what a row may hold, how it is checked, published, counted, shown.

One entry of ``COLUMNS`` is a whole column. The schemas, the checks of ``validate``, the published
form, dataset cards, ``stats`` and ``view`` come from it. Columns that are not ``always`` may be
missing in a corpus and null in a row; a new one is the last entry, and a job that does not fill it
leaves it null.

Of the columns beyond the four layers:

- ``shadow``: ``none`` or ``background``. With ``background`` the stored background carries the
  foreground's contact shadow, so that ``blended`` is still ``alpha*foreground +
  (1-alpha)*background``, and ``plate`` is the same background without it.
- ``objects``: of a foreground made of several, back to front: ``order`` (0 is the hindmost), its
  ``prompt`` and ``origin``, ``visible_alpha`` (what the others leave to be seen of it; all of them
  add up to ``alpha``), ``amodal_alpha`` (its own, as if nothing stood before it) and ``colour``
  (straight, also where others hide it; null where it is not known). The colours over ``background``
  by the amodal alphas, back to front, are ``blended``. Older corpora have no ``colour`` in it.
- ``draw``: JSON of every random draw and measured match of a pasted clip.
- ``known``: where the background was seen and the foreground's colour is more than a guess, see
  ``layerflow.media.known``; null where that is everywhere.
- ``subject``: which subject a mined clip shows: one id for all clips of a shot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from layerflow.clip import (
    ALPHA,
    ALPHA_KINDS,
    BACKGROUND_KINDS,
    KINDS,
    LAYERS,
    PROMPTED,
    U8,
    LayeredClip,
)
from layerflow.corpus.scores import QUALITY_FIELDS
from layerflow.layer_set import matted_over
from layerflow.media.cells import (
    Bounds,
    decode_alpha,
    decode_color,
    encode_alpha,
    encode_color,
    encode_png,
)
from layerflow.media.known import KNOWN, decode_known
from layerflow.media.opening import MediaError

SHADOWS = ("none", "background")
EXACT_LEVELS = 1
# 4:4:4 H.264 at crf 10 keeps each layer above 40 dB (2.6 levels rms). Recomposing adds the errors
# of three coded layers; this leaves room for hard textures, and a wrong layer is far above it.
CODED_RMS_LIMIT = 8.0
Row = Mapping[str, Any]
Faults = Iterator[tuple[str, ...]]
"""Field and what is wrong with it, and maybe what to do."""


@dataclass(frozen=True)
class Column:
    """One column.

    holds: what a card says of it; columns of one text share a line. always: in every corpus, and
    null in no row. words: all values that it may have. positive: a finite number above 0. media:
    suffix of the file that a moving clip's cell is; empty for plain values. counted: ``stats``
    counts its values. shown: ``view`` shows it with a clip. check: faults of a row's value, seen
    without decoding. cells: name and bytes of media cells inside of it. decode: raises MediaError
    for cells that do not fit the clip.
    """

    name: str
    type: pa.DataType
    holds: str
    always: bool = True
    words: tuple[str, ...] = ()
    positive: bool = False
    media: str = ""
    counted: bool = False
    shown: bool = False
    check: Callable[[Row], Faults] = lambda row: iter(())
    cells: Callable[[Row], Iterable[tuple[str, bytes]]] = lambda row: ()
    decode: Callable[[Row, LayeredClip], None] = lambda row, clip: None

    @property
    def small(self) -> bool:
        """Whether it is read with the columns without media: plain values that all read."""
        return (self.always and not self.media) or self.counted or self.shown

    def wrong_word(self, row: Row) -> Faults:
        value = row.get(self.name)
        if self.words and value not in self.words and (self.always or value is not None):
            yield self.name, f"{str(value)[:40]!r} is none of {', '.join(self.words)}"

    def media_cells(self, row: Row) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of every media cell of a row's value."""
        if self.media and row.get(self.name) is not None:
            yield self.name, row[self.name]
        yield from self.cells(row)


def _plate_faults(row: Row) -> Faults:
    if row.get("shadow") == "background" and row.get("plate") is None:
        yield "plate", "there is no background without the shadow"


def _decode_plate(row: Row, clip: LayeredClip) -> None:
    if row.get("plate") is not None:
        decode_color(row["plate"], Bounds.of(row))


def _decode_known(row: Row, clip: LayeredClip) -> None:
    if row.get(KNOWN) is not None:
        decode_known(row[KNOWN], Bounds.of(row))


def _object_faults(row: Row) -> Faults:
    for place, item in enumerate(row.get("objects") or ()):
        if item is None or item["order"] != place or item["origin"] is None:
            yield "objects", f"object {place} has another order, or no origin"
            return


def _object_cells(row: Row) -> Iterator[tuple[str, bytes]]:
    for item in row.get("objects") or ():
        for name in ("visible_alpha", "amodal_alpha"):
            yield f"objects.{item['order']}.{name}", item[name] or b""
        if item.get("colour") is not None:
            yield f"objects.{item['order']}.colour", item["colour"]


def _decode_singles(row: Row, clip: LayeredClip) -> None:
    objects = decode_objects(row)
    if objects:
        seen = sum(item.visible.astype(np.int32) for item in objects)
        worst = int(np.abs(seen - clip.alpha).max())
        if worst > len(objects) + EXACT_LEVELS:
            raise MediaError(f"the visible alphas of its objects miss alpha by {worst} levels")
        check_objects(objects, clip)


RIGHTS = ("licence", "attribution")
"""Fields of an origin that say who may do what."""

ORIGIN = pa.struct(
    [
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("licence", pa.string()),
        ("attribution", pa.string()),
        ("parents", pa.list_(pa.string())),
    ]
)
QUALITY = pa.struct([(name, pa.float32()) for name in QUALITY_FIELDS])
OBJECT = pa.struct(
    [
        ("order", pa.int32()),
        ("prompt", pa.string()),
        ("visible_alpha", pa.large_binary()),
        ("amodal_alpha", pa.large_binary()),
        ("origin", ORIGIN),
        ("colour", pa.large_binary()),
    ]
)

_COLOUR = ("colour, H.264 4:4:4 in MP4, or PNG for stills; the foreground is straight, not "
           "premultiplied")  # fmt: skip
_ALPHA = "one lossless full-range channel, FFV1 gray in Matroska, or PNG"
_SIZE = "of every layer"
_KINDS = "binary or soft; real, filled or inpainted"
COLUMNS: tuple[Column, ...] = (
    Column("id", pa.string(),
           "16 hex digits of a hash of the kind, the sources, the span and the recipe"),
    Column("kind", pa.string(),
           "mined (matted from a real video), pasted (a foreground on another background), image "
           "(a layered still)", words=KINDS),
    *(Column(layer, pa.large_binary(), _ALPHA if layer == ALPHA else _COLOUR,
             media="mkv" if layer == ALPHA else "mp4") for layer in LAYERS),
    *(Column(f"{layer}_prompt", pa.string(), "captions") for layer in PROMPTED),
    Column("num_frames", pa.int32(), _SIZE, positive=True),
    Column("height", pa.int32(), _SIZE, positive=True),
    Column("width", pa.int32(), _SIZE, positive=True),
    Column("fps", pa.float32(), _SIZE, positive=True),
    Column("alpha_kind", pa.string(), _KINDS, words=ALPHA_KINDS, counted=True),
    Column("background_kind", pa.string(), _KINDS, words=BACKGROUND_KINDS, counted=True),
    Column("origin", ORIGIN,
           "uri, sha256, start and end in seconds, licence, attribution, parents"),
    Column("quality", QUALITY, "all scores, null where a job does not know one"),
    Column("recipe", pa.string(), "hash of the options that the clip was made with", counted=True),
    Column("shadow", pa.string(),
           "none, or background: the foreground's contact shadow lies in the background layer",
           always=False, words=SHADOWS, counted=True, shown=True),
    Column("plate", pa.large_binary(), "the background without that shadow", always=False,
           media="mp4", check=_plate_faults, decode=_decode_plate),
    Column("objects", pa.list_(OBJECT),
           "single objects of the foreground, back to front, with visible and amodal alpha, and "
           "colour where it is known also behind others",
           always=False, check=_object_faults, cells=_object_cells, decode=_decode_singles),
    Column("draw", pa.string(),
           "JSON of every random draw and measured match of a pasted clip", always=False),
    Column(KNOWN, pa.large_binary(),
           "where the background was seen and the foreground's colour is no guess: grey 85 * "
           "(background + 2 * foreground), lossless; null: everywhere",
           always=False, media="mkv", decode=_decode_known),
    Column("subject", pa.string(),
           "id of what a mined clip shows, the same in all clips of a shot", always=False,
           shown=True),
)  # fmt: skip

SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS if column.always])
EXTRAS = pa.schema([(column.name, column.type) for column in COLUMNS if not column.always])
EXTENDED_SCHEMA = pa.schema([*SCHEMA, *EXTRAS])
MEDIA = tuple(column.name for column in COLUMNS if column.media)


def small_columns(schema: pa.Schema) -> tuple[str, ...]:
    """The columns without media that a table has, and that everybody may read."""
    return tuple(c.name for c in COLUMNS if c.small and c.name in schema.names)


def cells(row: Row) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every media cell of a row beyond its layers."""
    for column in COLUMNS:
        if not column.always:
            yield from column.media_cells(row)


@dataclass(frozen=True)
class SingleObject:
    """One object of a foreground. visible, amodal: uint8 ``[T, H, W]``; origin as of a row.
    colour: uint8 ``[T, H, W, 3]``, straight; None where it is not known."""

    order: int
    prompt: str
    visible: U8
    amodal: U8
    origin: Mapping[str, Any]
    colour: U8 | None = None


def encode_objects(
    objects: Sequence[SingleObject],
    fps: float,
    *,
    still: bool = False,
    color: Callable[[U8, float], bytes] = encode_color,
) -> list[dict[str, Any]]:
    """The ``objects`` cell of a row: alphas lossless, as the alpha layer. color: codes colours of
    moving clips."""

    def cell(alpha: U8) -> bytes:
        return encode_png(alpha[0]) if still else encode_alpha(alpha, fps)

    def tinted(colour: U8 | None) -> bytes | None:
        if colour is None:
            return None
        return encode_png(colour[0]) if still else color(colour, fps)

    return [
        {
            "order": item.order,
            "prompt": item.prompt,
            "visible_alpha": cell(item.visible),
            "amodal_alpha": cell(item.amodal),
            "origin": dict(item.origin),
            "colour": tinted(item.colour),
        }
        for item in objects
    ]


def decode_objects(row: Row, keep: Sequence[int] | None = None) -> list[SingleObject]:
    """The single objects of a row, back to front; empty when it has none on record.

    keep: which frames, in that order; None: all. Raises MediaError for a damaged cell.
    """
    bounds = Bounds.of(row)
    return [
        SingleObject(
            item["order"],
            item["prompt"] or "",
            decode_alpha(item["visible_alpha"], bounds, keep),
            decode_alpha(item["amodal_alpha"], bounds, keep),
            item["origin"],
            None if item.get("colour") is None else decode_color(item["colour"], bounds, keep),
        )
        for item in row.get("objects") or ()
    ]


def check_objects(objects: Sequence[SingleObject], clip: LayeredClip) -> None:
    """Raises MediaError when the colours of all objects do not make the blended picture."""
    rms = objects_error(objects, clip)
    if rms is not None and rms > CODED_RMS_LIMIT:
        raise MediaError(f"its objects over the background miss blended by {rms:.1f} levels rms")


def objects_error(objects: Sequence[SingleObject], clip: LayeredClip) -> float | None:
    """Root mean square, in levels, between ``blended`` and the objects' colours over the background
    by their amodal alphas, back to front; None where a colour is not known."""
    colours = [item.colour for item in objects if item.colour is not None]
    if not objects or len(colours) < len(objects):
        return None
    total = 0.0
    for t in range(clip.num_frames):
        made = clip.background[t].astype(np.float32)
        for colour, item in zip(colours, objects, strict=True):
            made = matted_over(colour[t], item.amodal[t] / np.float32(255), made)
        total += float(np.square(made - clip.blended[t], dtype=np.float64).sum())
    return float(np.sqrt(total / clip.blended.size))


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
    fields that one was made too early to have."""
    extras = set(EXTRAS.names)
    schemas = [_with_newer_fields(schema) for schema in schemas]
    plain = [[field for field in schema if field.name not in extras] for schema in schemas]
    if any(fields != plain[0] for fields in plain):
        return None
    found: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            if found.setdefault(field.name, field) != field:
                return None
    return pa.schema([*plain[0], *(found[name] for name in EXTRAS.names if name in found)])


def _with_newer_fields(schema: pa.Schema) -> pa.Schema:
    """The schema with every score and every field of ``objects`` of this version, where it has some
    of them and no other."""
    for name, wanted in (("quality", QUALITY), ("objects", pa.list_(OBJECT))):
        at = schema.get_field_index(name)
        if at >= 0 and _fewer_fields(schema.types[at], wanted):
            schema = schema.set(at, schema.field(at).with_type(wanted))
    return schema


def _fewer_fields(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a struct, or a list of them, holds some of the wanted fields and no other."""
    if pa.types.is_list(found) and pa.types.is_list(wanted):
        found, wanted = found.value_type, wanted.value_type
    return pa.types.is_struct(found) and pa.types.is_struct(wanted) and set(found) <= set(wanted)


REJECTED_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("quality", QUALITY),
        ("recipe", pa.string()),
    ]
)
