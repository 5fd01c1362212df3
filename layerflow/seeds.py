"""Counted randomness: every draw is a function of (seed, place, purpose), and of nothing before it.

The one place that turns keys into generators. The three forms of a key give different streams;
each keeps its form, since what has been drawn from it must not change.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, index: int, purpose: str, attempt: int = 0) -> np.random.Generator:
    """What jobs draw from: a generator for one purpose of one clip."""
    return generator_of(f"{seed}/{index}/{purpose}/{attempt}")


def keyed(*key: object) -> np.random.Generator:
    """What training and validation draw from: equal keys give equal streams."""
    return generator_of(repr(key))


def generator_of(text: str) -> np.random.Generator:
    """A generator that follows from a text."""
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def numbered(*numbers: int) -> np.random.Generator:
    """What procedural media are drawn from: a generator that follows from a few numbers."""
    return np.random.default_rng(numbers)


def torch_seed(*key: object) -> int:
    """What to seed torch with, of a key as in ``keyed``."""
    return int(keyed(*key).integers(2**63))


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, purpose: str, size: int) -> NDArray[np.int64]:
    """A permutation of ``range(size)``, cached."""
    return generator(seed, epoch, purpose).permutation(size)


def in_blocks(seed: int, index: int, count: int, size: int) -> int:
    """Which of ``size`` things draw ``index`` of ``count`` takes: equal shares, in blocks.

    Neighbouring draws share a thing, so that it is loaded once a block; uses differ by at most 1.
    """
    order = permutation(seed, 0, "blocks", size)
    return int(order[index * size // count if count >= size else index])


def first_of_block(index: int, count: int, size: int) -> bool:
    """Whether draw ``index`` is the first that takes its thing under ``in_blocks``."""
    if count <= size or index == 0:
        return True
    return index * size // count != (index - 1) * size // count


def in_turns(seed: int, index: int, size: int) -> int:
    """Which of ``size`` things draw ``index`` takes: a new permutation every ``size`` draws."""
    epoch, place = divmod(index, size)
    return int(permutation(seed, epoch, "turns", size)[place])


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Between low and high, both positive, even on a log scale."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
