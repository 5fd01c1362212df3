"""What a captioner is asked, and what a captioner is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from layerflow.clip import U8


class CaptionError(ValueError):
    """The captioner gave no answer; the message says why and holds no secret."""


@dataclass(frozen=True)
class Request:
    """Pictures (uint8 [H, W, 3], in time order) and what to say about them."""

    pictures: tuple[U8, ...]
    text: str


class Captioner(Protocol):
    """Something that looks at pictures. ``name`` and ``licence`` go on record."""

    name: str
    licence: str

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """One answer a request, in order. Raises CaptionError when there is none to be had."""
        ...

    def check(self) -> None:
        """Raise ValueError if requests cannot work at all (address, key, weights)."""
        ...
