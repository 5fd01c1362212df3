"""Clips of which only a prompt is new: their latents stay, what they say of the prompt does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from layerflow.corpus.latent_rows import prompt_key
from layerflow.corpus.latents import Latents
from layerflow.layer_set import LayerSet, prompted_of


class Stored:
    """What latents that are there were made of, by the id of their rows."""

    def __init__(self, have: Latents | None) -> None:
        self._have = have
        ids = have.column("id") if have is not None else []
        self.content = dict(zip(ids, have.column("content"), strict=True)) if have else {}
        self._places = {id: place for place, id in enumerate(ids)}
        layers = have.layers.prompted if have is not None else ()
        self._keys = {layer: have.column(f"{layer}_prompt") for layer in layers} if have else {}

    def has(self, outputs: Sequence[str], content: str | None) -> bool:
        """Whether all rows of a clip are there as they should be; not where no hash is known."""
        there = (self.content.get(output) == content for output in outputs)
        return content is not None and all(there)

    def has_but_prompts(
        self, outputs: Sequence[str], layers: Sequence[str], content: Callable[[list[str]], str]
    ) -> bool:
        """Whether all rows of a clip are there, and other prompts are all that is new.

        layers: those of the clip's prompts. content: prompts of these -> the clip's hash with them.
        """
        there = self.content.get(outputs[0])
        if there is None or not self.has(outputs, there) or not set(layers) <= set(self._keys):
            return False
        place, known = self._places[outputs[0]], self._prompts
        keys = [self._keys[layer][place] for layer in layers]
        if any(key and key not in known for key in keys):
            return False
        return content([self._text(key) for key in keys]) == there

    @cached_property
    def _prompts(self) -> set[str]:
        return self._have.prompt_keys() if self._have is not None else set()

    def _text(self, key: str) -> str:
        """A prompt by its key, without the number in front."""
        assert self._have is not None
        return self._have.prompt_text(key).partition(", ")[2] if key else ""


def with_prompts(
    raw: Mapping[str, Any], content: str, prompts: Sequence[str], layers: LayerSet
) -> dict[str, Any]:
    """A row of `clips/` with the keys of new prefixed prompts, and the hash that goes with them."""
    names = prompted_of(layers.with_foregrounds(raw.get("foregrounds", 1)))
    keys = {f"{name}_prompt": prompt_key(text) for name, text in zip(names, prompts, strict=True)}
    return {**raw, **keys, "content": content}
