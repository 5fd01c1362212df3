"""Functions that run in a contained child: decoders of what strangers made, called as any other.

``@isolated`` sends a call to this process' child (``layerflow.media.sandbox``), which is kept for
the next one: a crash, a hang or memory without end is a MediaError of one call. What comes back are
plain values and pictures, built here from JSON and raw bytes; nothing of the child is unpickled.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import threading
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from layerflow.media.opening import MediaError
from layerflow.media.sandbox import Buffer, Contained, Work

SHARED_BYTES = 64 << 20  # of pictures that come through shared memory; larger ones through a pipe
P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.Lock()
_children: dict[int, Contained] = {}
_inside = False


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run in this process' child; inside of it, called directly.

    It must be at the top of its module. Arguments: what pickle takes. It may return None, bool,
    int, float, str, uint8 arrays, and tuples and str-keyed dicts of these. Besides MediaError it
    raises nothing: other errors become one.
    """

    @wraps(function)
    def contained(*args: P.args, **kwargs: P.kwargs) -> R:
        if _inside:
            return function(*args, **kwargs)
        with _lock:
            return call(_child(), function, *args, **kwargs)

    return contained


def call(child: Contained, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a function such as ``isolated`` takes gives in a child whose handler is ``caller``.

    Lists come back as tuples. Raises MediaError as ``isolated``.
    """
    request = pickle.dumps((function.__module__, function.__qualname__, args, kwargs))
    return _unpacked(child.call(request))  # type: ignore[no-any-return]


def _child() -> Contained:
    child = _children.get(os.getpid())
    if child is None:
        _children.clear()  # of the process that this one was forked from
        child = Contained(caller, Path(), writes=False, shared=SHARED_BYTES)
        _children[os.getpid()] = child
    return child


def caller(path: Path) -> Work:
    """The handler of this module's child."""
    global _inside
    _inside = True

    def answer(request: bytes) -> list[Buffer]:
        module, name, args, kwargs = pickle.loads(request)  # from the parent: trusted
        arrays: list[Buffer] = []
        tree = _packed(getattr(import_module(module), name)(*args, **kwargs), arrays)
        return [json.dumps(tree).encode() + b"\n", *arrays]

    return answer


def _packed(value: Any, arrays: list[Buffer]) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8:
            raise TypeError(f"an isolated function gave an array of {value.dtype}")
        arrays.append(np.ascontiguousarray(value).reshape(-1).data)
        return {"array": value.shape}
    if isinstance(value, tuple | list):
        return [_packed(part, arrays) for part in value]
    if isinstance(value, dict):
        return {"dict": {name: _packed(part, arrays) for name, part in value.items()}}
    return value


def _unpacked(answer: Buffer) -> Any:
    """Raises MediaError when the answer is none."""
    whole = memoryview(answer)
    place = 0

    def value(tree: Any) -> Any:
        nonlocal place
        if isinstance(tree, list):
            return tuple(value(part) for part in tree)
        if not isinstance(tree, dict):
            return tree
        if "dict" in tree:
            return {name: value(part) for name, part in tree["dict"].items()}
        shape = tuple(int(side) for side in tree["array"])
        start, place = place, place + math.prod(shape)
        if min(shape, default=-1) < 0 or place > len(whole):
            raise ValueError("fewer pictures than it says")
        return np.frombuffer(whole[start:place], np.uint8).reshape(shape).copy()

    try:
        place = bytes(whole[: 1 << 20]).index(b"\n") + 1
        return value(json.loads(bytes(whole[: place - 1])))
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise MediaError(f"the decoder gave an answer that is none: {error}") from error
