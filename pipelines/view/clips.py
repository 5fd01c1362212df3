"""What every source of clips has, and how far two pictures are apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from layerflow.clip import U8, LayeredClip
from layerflow.media.layer_stack import LayerStack

DIFFERENCE_GAIN = 8


class ClipSource(Protocol):
    """Clips to show. ``rows`` are plain values; ``clip`` decodes one, in this process, and
    ``stack`` its single foregrounds where it has several or effects, else None.

    A row's ``flat`` says that its layers are no colours that a backing belongs behind.
    """

    name: str

    def rows(self) -> Iterator[dict[str, Any]]: ...

    def rejected(self) -> Iterator[dict[str, Any]]: ...

    def clip(self, index: int) -> LayeredClip: ...

    def stack(self, index: int) -> LayerStack | None: ...

    def __len__(self) -> int: ...


def difference(blended: U8, recomposed: U8) -> U8:
    """``|blended - recomposed|``, times 8, at most 255."""
    apart = np.abs(blended.astype(np.int16) - recomposed)
    return np.minimum(apart * DIFFERENCE_GAIN, 255).astype(np.uint8)
