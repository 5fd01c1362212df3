"""Read a pickle of plain values and numpy arrays without letting it run anything.

Every name that the pickle asks for is refused, but for the few that describe numpy arrays, and
those are our own functions here: arrays are built from their bytes after all sizes were compared.
"""

from __future__ import annotations

import io
import math
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 1 << 30  # of the pickle, after decompression
DTYPES = frozenset({"b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"})
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")


class _Dtype:
    """``numpy.dtype(code, align, copy)`` and its state, as plain values."""

    def __init__(self, code: Any, *_flags: Any) -> None:
        self.code = str(code)
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if isinstance(state, tuple) and len(state) > 1 and state[1] == ">" else "<"

    def real(self) -> np.dtype[Any]:
        if self.code not in DTYPES:
            raise ValueError(f"an array of type {self.code[:20]!r} is not read")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """An array that numpy's ``_reconstruct`` would start, and ``__setstate__`` fills."""

    def __init__(self, *_arguments: Any) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    sides = tuple(int(side) for side in shape)
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array does not hold plain numbers")
    kind = dtype.real()
    if min(sides, default=0) < 0 or math.prod(sides) * kind.itemsize != len(data):
        raise ValueError(f"an array of shape {sides} does not fit its {len(data)} bytes")
    flat = np.frombuffer(bytes(data), kind)
    return flat.reshape(sides, order="F" if order == "F" else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.value = _array(data, dtype, shape, str(order))
    return made


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, (), "C").item()


def _ordinary(value: Any = b"", *_encoding: Any) -> bytes:
    """``_codecs.encode`` and ``bytes``, as old pickle protocols write bytes."""
    return value.encode("latin-1") if isinstance(value, str) else bytes(value)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _ARRAY_MODULES and name in ("_reconstruct", "scalar"):
            return _Array if name == "_reconstruct" else _scalar
        if module in _BUFFER_MODULES and name == "_frombuffer":
            return _from_buffer
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) in (("_codecs", "encode"), ("builtins", "bytes")):
            return _ordinary
        raise ValueError(f"it asks for {module}.{name}, which is not run"[:200])

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it refers to objects outside of it")


def _plain(value: Any, depth: int = 0) -> Any:
    """Arrays in place of their stand-ins; anything unexpected is refused."""
    if depth > 12:
        raise ValueError("it is nested too deeply")
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array has no content")
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float | str | bytes | np.ndarray):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")


def _inflated(data: bytes) -> bytes:
    """Undo zlib, where the data is compressed, up to ``MAX_BYTES``."""
    if data[:1] != b"\x78":
        return data
    stream = zlib.decompressobj()
    plain = stream.decompress(data, MAX_BYTES)
    if stream.unconsumed_tail or not stream.eof:
        raise ValueError(f"it is cut off, or over {MAX_BYTES} bytes when decompressed")
    return plain


def read_pickle(path: Path, keys: Sequence[str] = ()) -> dict[Any, Any]:
    """A (zlib-compressed) pickle of a dict: plain values and numpy arrays only.

    ``keys`` must be in it. Raises ValueError for a file that asks for anything else, is damaged or
    too large.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"over {MAX_BYTES} bytes")
    try:
        content = _plain(_Unpickler(io.BytesIO(_inflated(path.read_bytes()))).load())
    except ValueError as error:
        raise ValueError(f"is no pickle that can be read safely: {error}") from error
    except Exception as error:  # the pickle machine raises nearly everything on damaged data
        raise ValueError(f"is a damaged pickle: {type(error).__name__}") from error
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise ValueError(f"holds no dict with the keys {', '.join(keys)}")
    return content
