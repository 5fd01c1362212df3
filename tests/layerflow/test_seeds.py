"""Counted randomness: what was drawn for a key stays, and one module makes all generators."""

from __future__ import annotations

import ast

import pytest

from layerflow.seeds import generator, generator_of, keyed, numbered, torch_seed
from tests.support import ROOT

DRAWN = {
    "a clip's purpose": (generator(7, 3, "camera", 1), [53498982305125964, 6066936388310687233]),
    "a key": (keyed(7, "base", "step", 3), [4944329458934788729, 318204714059300778]),
    "a text": (generator_of("a-frozen"), [3413264774928727408, 2433962436778159628]),
    "numbers": (numbered(7, 3, 1), [4910718777889183720, 481446816312310824]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_are_those_of_earlier_versions(name: str) -> None:
    rng, values = DRAWN[name]
    assert rng.integers(2**63, size=2).tolist() == values


def test_torch_is_seeded_by_a_key() -> None:
    assert torch_seed(7, "base", "adapter") == 2328030186839750977


def test_no_other_module_makes_a_numpy_generator() -> None:
    made = ("default_rng", "Philox", "PCG64", "SeedSequence", "RandomState")
    found = {
        str(path.relative_to(ROOT))
        for package in ("layerflow", "pipelines", "trainer", "manifests")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in made
    }
    assert found == {"layerflow/seeds.py"}
