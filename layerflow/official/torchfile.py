"""Read tensors out of ``torch.save`` files without running anything they contain.

A released checkpoint pickles RNG and client states beside its weights, which ``weights_only``
loading refuses. Here every name that a pickle asks for becomes an inert object, except the handful
that describe tensors, and those are our own functions. Tensors are read from the file one by one.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MAX_PICKLE_BYTES = 256 << 20
STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in a file. start: first byte of its storage."""

    path: Path
    start: int
    dtype: torch.dtype
    storage_offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> torch.Tensor:
        """Read it; a new, contiguous CPU tensor."""
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        size = torch.empty((), dtype=self.dtype).element_size()
        data = bytearray((last + 1) * size)
        with self.path.open("rb") as file:
            file.seek(self.start + self.storage_offset * size)
            if file.readinto(data) != len(data):
                raise ValueError(f"{self.path} is truncated")
        flat = torch.frombuffer(data, dtype=self.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


class Inert:
    """Stands for anything a pickle names: takes every call and keeps nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __call__(self, *_args: Any, **_kwargs: Any) -> Inert:
        return Inert()

    def __setstate__(self, _state: Any) -> None: ...

    def __setitem__(self, _key: Any, _value: Any) -> None: ...

    def append(self, _item: Any) -> None: ...

    def extend(self, _items: Any) -> None: ...

    def add(self, _item: Any) -> None: ...


@dataclass(frozen=True)
class _Storage:
    start: int
    dtype: torch.dtype
    numel: int


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path, place: Callable[[str], tuple[int, int]]) -> None:
        super().__init__(io.BytesIO(data))
        self._path, self._place = path, place

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda value, *_: value
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        return Inert

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _location, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            return Inert()
        start, size = self._place(str(key))
        if int(numel) * torch.empty((), dtype=dtype).element_size() > size:
            raise ValueError(f"storage {key} is smaller than the file says")
        return _Storage(start, dtype, int(numel))

    def _tensor(self, storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> Any:
        if not isinstance(storage, _Storage):
            return Inert()
        shape, stride = tuple(map(int, shape)), tuple(map(int, stride))
        last = int(offset) + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if min((*shape, *stride, int(offset)), default=0) < 0 or (
            math.prod(shape) and last >= storage.numel
        ):
            raise ValueError(f"a tensor of shape {shape} lies outside its storage")
        return StoredTensor(self._path, storage.start, storage.dtype, int(offset), shape, stride)


def read_torch_file(path: str | Path) -> Any:
    """The pickled structure of a ``torch.save`` file, tensors as ``StoredTensor``.

    ValueError for a file that is truncated, of the old (non-zip) format or inconsistent.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in infos if name.endswith("data.pkl") and name.count("/") < 2]
            if len(pickles) != 1 or infos[pickles[0]].file_size > MAX_PICKLE_BYTES:
                raise ValueError("it holds no data.pkl, or one that is too large")
            root = pickles[0].removesuffix("data.pkl")
            endian = f"{root}byteorder"
            if endian in infos and archive.read(endian).strip() != b"little":
                raise ValueError("it is not little-endian")

            def place(key: str) -> tuple[int, int]:
                return _place(path, infos[f"{root}data/{key}"])

            return _Reader(archive.read(pickles[0]), path, place).load()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is truncated, or not a torch.save file of torch 1.6 or later: {error}"
        ) from error
    except (KeyError, EOFError, pickle.UnpicklingError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _place(path: Path, info: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte and length of an uncompressed zip entry."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > path.stat().st_size:
        raise ValueError(f"{info.filename} reaches beyond the end of the file")
    return start, info.file_size
