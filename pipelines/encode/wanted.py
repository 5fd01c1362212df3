"""Which clips the latents of corpora are made of, and what is new of them.

The driver reads the columns without media. What a clip's media are is asked of workers, and only
where latents are there already: their hashes say which clips changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from layerflow.corpus.columns import small_columns
from layerflow.corpus.latent_rows import RGBA
from layerflow.corpus.published import fetched, open_corpus
from layerflow.corpus.row_stack import row_cells, row_prompts
from layerflow.corpus.validate import refuse_unsound
from layerflow.layer_set import LayerSet, layer_set
from layerflow.media.known import KNOWN
from pipelines.encode.clip_latents import Augment, variants
from pipelines.encode.texts import Stored
from pipelines.engine.recipe import unit_key
from pipelines.engine.staging import Parts, Staging, json_part
from pipelines.engine.workers import Pool, Unit, run_staged

UNIT_HASHED = 256  # rows
HASHES = "hashes.json"


@dataclass(frozen=True)
class WantedRow:
    """A corpus row that is wanted: where it lies, and the rows of latents that it becomes.

    identity: of the corpus's rows, of which this is number ``index``. texts: prompts by layer.
    content: the hash of what its latents are made of; None where nobody asked for it yet.
    only_prompts: latents of its media are there.
    """

    corpus: str
    identity: str
    index: int
    id: str
    kind: str
    alpha_kind: str
    outputs: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]
    content: str | None = None
    only_prompts: bool = False

    @property
    def prompts(self) -> list[str]:
        """As the text encoder takes them: with the layer's number in front."""
        from layerflow.model.text import prefixed

        return [prefixed(layer, text) for layer, text in self.texts]


def wanted_rows(
    corpora: Sequence[str], augment: Augment, layers: LayerSet = RGBA
) -> Iterator[WantedRow]:
    """All rows of the corpora with what they become. ValueError for an id that comes twice."""
    seen: set[str] = set()
    for path in corpora:
        folder = fetched(path)
        corpus = open_corpus(folder)
        refuse_unsound(corpus, ids=False)  # below, over all of them
        identity = unit_key(corpus.identity())
        columns = [*small_columns(corpus.schema)]
        if len(layers.foregrounds) > 1 and "objects" in corpus.schema.names:
            columns.append("objects")  # its colours say which of them are foregrounds
        for index, row in enumerate(corpus.rows(columns)):
            if row["id"] in seen:
                raise ValueError(f"{path}: clip {row['id']} is in these corpora more than once")
            seen.add(row["id"])
            yield WantedRow(
                corpus=corpus.address,
                identity=identity,
                index=index,
                id=row["id"],
                kind=row["kind"],
                alpha_kind=row["alpha_kind"],
                outputs=tuple(row["id"] + v.suffix for v in variants(row["kind"], augment)),
                texts=tuple(row_prompts(row, layers).items()),
            )


def compared(
    rows: Sequence[WantedRow], stored: Stored, layers: LayerSet, staging: Staging, pool: Pool
) -> list[WantedRow]:
    """The rows with the hashes of what they are made of, and whether only a prompt is new. Workers
    read their media; of one that nobody can read no hash is known."""
    hashes = _hashes(rows, layers, staging, pool)
    found = []
    for row in rows:
        media = hashes.get(row.id)
        if media is not None:
            content = partial(content_of, media, row.kind, row.alpha_kind)
            names = tuple(layer for layer, _ in row.texts)
            row = replace(row, content=content([text for _, text in row.texts]))
            changed = not stored.has(row.outputs, str(row.content))
            only = changed and stored.has_but_prompts(row.outputs, names, content)
            row = replace(row, only_prompts=only)
        found.append(row)
    return found


def content_of(media: str, kind: str, alpha_kind: str, texts: Sequence[str]) -> str:
    """The hash of what a clip's latents are made of. media: of ``media_hash``."""
    about = json.dumps([list(texts), kind, alpha_kind]).encode()
    return hashlib.sha256(about + bytes.fromhex(media)).hexdigest()[:32]


def content_of_row(row: Mapping[str, Any], layers: LayerSet) -> str:
    """The same of a whole corpus row."""
    texts = list(row_prompts(row, layers).values())
    return content_of(media_hash(row, layers), row["kind"], row["alpha_kind"], texts)


def media_hash(row: Mapping[str, Any], layers: LayerSet) -> str:
    """Hashes of a row's media cells, one after the other."""
    cells = b"".join(hashlib.sha256(cell).digest() for cell in row_cells(row, layers))
    if row.get(KNOWN) is not None:
        cells += hashlib.sha256(row[KNOWN]).digest()
    return cells.hex()


# ---- hashing ----------------------------------------------------------------------------------


def _hashes(
    rows: Sequence[WantedRow], layers: LayerSet, staging: Staging, pool: Pool
) -> dict[str, str]:
    """Id -> ``media_hash`` of the rows; what is staged already is not read again."""
    units = list(_hash_units(rows, layers))
    lost = run_staged(units, hash_unit, staging, pool)
    found: dict[str, str] = {}
    for unit in units:
        if unit.key not in lost:
            found |= json.loads(staging.read(unit.key, HASHES))
    return found


def _hash_units(rows: Sequence[WantedRow], layers: LayerSet) -> Iterator[Unit]:
    for start in range(0, len(rows), UNIT_HASHED):
        part = rows[start : start + UNIT_HASHED]
        key = unit_key(layers.name, [(row.identity, row.index) for row in part])
        there = [(row.corpus, row.index) for row in part]
        yield Unit(key, 0, {"layers": layers.name, "rows": there})


open_kept = lru_cache(maxsize=8)(open_corpus)  # a process keeps some corpora open


def hash_unit(unit: Mapping[str, Any]) -> Parts:
    """What a unit commits: the hashes of its rows' media."""
    layers = layer_set(unit["layers"])
    rows = (open_kept(corpus).row(index) for corpus, index in unit["rows"])
    return {HASHES: json_part({row["id"]: media_hash(row, layers) for row in rows})}
