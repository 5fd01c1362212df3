"""Statistics of many numbers in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest

from layerflow.corpus import stats
from layerflow.corpus.stats import Values, _distribution, plain_rows
from pipelines.publish.tables import shard_rows


def test_many_values_keep_an_even_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "MOST_VALUES", 1000)
    numbers = np.random.default_rng(0).normal(size=7_777).astype(np.float32)
    values = Values()
    for piece in np.split(numbers.astype(np.float64), [1, 999, 1001, 1002, 5000]):
        values.extend(piece)
    assert values.step == 8 and values.kept.tolist() == numbers[::8].tolist()
    found = _distribution(values)
    assert found["count"] == 7_777 and found["mean"] == pytest.approx(numbers.mean(), abs=1e-6)
    assert (found["min"], found["max"]) == (numbers.min(), numbers.max())
    assert found["p50"] == pytest.approx(np.percentile(numbers[::8].astype(float), 50))


def test_few_values_are_all_there() -> None:
    values = Values()
    values.extend(np.array([3.0, 1.0, 2.0]))
    values.extend(np.array([]))
    found = _distribution(values)
    assert (found["p50"], found["mean"], found["count"]) == (2.0, 2.0, 3)


def test_rows_of_an_array_come_as_they_are() -> None:
    array = np.arange(10_000).reshape(5_000, 2)
    assert list(plain_rows(array)) == array.tolist()


def test_rows_of_shards_are_counted_one_by_one() -> None:
    rng = np.random.default_rng(1)
    for limit in (1, 10, 100, 10_000):
        sizes = rng.integers(0, 60, 200)
        counts, held = [0], 0
        for size in sizes.tolist():
            if counts[-1] and held + size > limit:
                counts.append(0)
                held = 0
            counts[-1] += 1
            held += size
        assert shard_rows(sizes, limit) == counts
    assert shard_rows(np.zeros(0, int), 5) == [0]
