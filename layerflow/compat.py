"""Keep a torchvision whose compiled operators do not match torch from breaking our dependencies.

A torchvision built for another torch (typically a CUDA build beside a CPU-only torch) raises
``RuntimeError: operator torchvision::nms does not exist`` on import, and with it fail peft,
transformers' models, diffusers' pipelines, timm and transparent-background, none of which call
those operators here. Declaring the two operator schemas that torchvision registers without a
guard lets its Python part import; calling the operators themselves still raises.

``install()`` costs nothing: it only puts a finder in front of the import system that acts the
first time somebody imports ``torchvision``. On a healthy installation it changes nothing.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Sequence
from types import ModuleType

_OPERATORS = ("nms", "qnms")
_library: object | None = None


def ensure_torchvision() -> str:
    """Import torchvision, declaring its missing operator schemas if that is what it lacks.

    Returns ``"native"``, ``"shimmed"`` or ``"absent"``. Raises whatever torchvision raises for
    any other reason.
    """
    global _library
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return "absent"
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return "shimmed" if _library is not None else "native"
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library = library  # schemas live as long as the library object
    importlib.import_module("torchvision")
    return "shimmed"


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Runs ``ensure_torchvision`` before the first import of torchvision, then steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            ensure_torchvision()
            loaded = sys.modules.get("torchvision")
            return loaded.__spec__ if loaded is not None else None
        return None


def install() -> None:
    """Make the next import of torchvision safe, and keep one library quiet; idempotent."""
    # On CPUs bitsandbytes advises, at import, a package for 4-bit products: nothing here computes
    # them on CPUs, and peft imports it wherever it is installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if "torchvision" in sys.modules:
        return
    if not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())
