"""The table of scores: columns, thresholds, and what pages say of them, from one place."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise

import pyarrow as pa

from layerflow.corpus.scores import PRESETS, QUALITY_FIELDS, SCORES, markdown, meaning, thresholds
from layerflow.corpus.table import EXTENDED_SCHEMA, REJECTED_SCHEMA
from pipelines.gates import GATES, judge
from tests.support import ROOT

LAST = ("draw", "text_alignment")  # column, score
CHAIN = ("loose", "standard", "strict")  # each takes all that the next one takes


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def stored(schema: pa.Schema) -> str:
    """A schema without what came after the columns and scores of the first version, as hex."""
    fields = list(schema)[: schema.names.index(LAST[0]) + 1 if LAST[0] in schema.names else None]
    place = schema.names.index("quality")
    scores = list(fields[place].type)[: QUALITY_FIELDS.index(LAST[1]) + 1]
    fields[place] = fields[place].with_type(pa.struct(scores))
    if "objects" in schema.names:
        place = schema.names.index("objects")
        single = fields[place].type.value_type
        older = list(single)[: single.get_field_index("origin") + 1]
        fields[place] = fields[place].with_type(pa.list_(pa.struct(older)))
    return pa.schema(fields).serialize().to_pybytes().hex()


def test_stored_columns_and_thresholds_are_what_they_were() -> None:
    known = QUALITY_FIELDS[: QUALITY_FIELDS.index(LAST[1]) + 1]
    gates = {name: [kv for kv in GATES[name].items() if kv[0] in known] for name in CHAIN}
    assert digest(known) == "7fb128ef834c"
    assert digest(gates) == "a1989ee78ec8"
    assert digest([stored(EXTENDED_SCHEMA), stored(REJECTED_SCHEMA)]) == "492c6e4253d1"


def test_of_several_failures_the_first_in_the_old_order_is_named() -> None:
    scores = {"ghost": 0.9, "area_min": 0.0, "matte_stability": 0.0, "matte_agreement": 0.0}
    assert judge(scores, "strict") == "area_min 0 below 0.01"
    del scores["area_min"], scores["ghost"]
    assert judge(scores, "strict") == "matte_agreement 0 below 0.7"


def test_every_score_says_what_it_is() -> None:
    assert len({score.name for score in SCORES}) == len(SCORES)
    for score in SCORES:
        assert score.meaning and not score.meaning.endswith(".") and len(score.meaning) < 90
        limits = [thresholds(preset).get(score.name) for preset in CHAIN]
        known = [pair for pair in limits if pair is not None]
        assert limits[3 - len(known) :] == known, f"{score.name} is judged by a stricter preset too"
        assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in pairwise(known))
    assert meaning("flicker").startswith("change of alpha") and meaning("colour_of_the_sky") == ""


def test_coarse_takes_what_standard_takes_any_unseen_background_but_no_worse_matte() -> None:
    assert set(PRESETS) == {*CHAIN, "coarse"}
    standard, coarse = thresholds("standard"), thresholds("coarse")
    assert set(standard) - set(coarse) == {"unseen_fraction", "bystander_fraction"}
    for name, (low, high) in coarse.items():
        assert low <= standard[name][0] and high >= standard[name][1]
    matting = {score.name for score in SCORES if score.known == "matting"}
    matting -= {"matte_stability", "matte_agreement"}  # how far sources differ, not what came out
    matte = {*matting, "warp_iou", "newcomers", "soft_fraction", "leftover_fraction", "ghost"}
    assert all(coarse.get(name) == standard.get(name) for name in matte)
    assert judge({"unseen_fraction": 1.0, "warp_iou": 0.8}, "coarse") is None
    assert judge({"unseen_fraction": 1.0}, "loose") == "unseen_fraction 1 above 0.9"
    assert judge({"unseen_fraction": 1.0, "warp_iou": 0.6}, "coarse") == "warp_iou 0.6 below 0.7"


def test_the_table_of_the_docs_is_of_the_declaration() -> None:
    page = (ROOT / "docs/mine.md").read_text()
    table = page[page.index("| score | says") :].split("\n\n")[0].splitlines()
    names = [row.split("`")[1] for row in table[2:]]
    assert len(names) >= 20
    assert markdown(names).splitlines() == table
