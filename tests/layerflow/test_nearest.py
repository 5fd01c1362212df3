"""Names that are not there: the near one is offered, wherever a name is chosen."""

from __future__ import annotations

import pytest

from layerflow.corpus.derive import parse_where
from layerflow.nearest import did_you_mean
from layerflow.plugins import BASES
from pipelines.gates import resolve_gate


def test_nothing_is_offered_for_a_name_like_none() -> None:
    assert did_you_mean("zebra", ["flicker", "ghost"]) == ""


def test_gates_scores_columns_and_presets_offer_the_near_name() -> None:
    with pytest.raises(ValueError, match="'standart'; did you mean 'standard'"):
        resolve_gate("standart")
    with pytest.raises(ValueError, match="'flickr'; did you mean 'flicker'"):
        resolve_gate("off", {"flickr": (0.0, 1.0)})
    with pytest.raises(ValueError, match="'alpha_king' is no score or column; did you mean"):
        parse_where("alpha_king=soft")
    with pytest.raises(ValueError, match="'cogvideo-2b'; did you mean 'cogvideox-2b'"):
        BASES.load("cogvideo-2b")
