"""The layers of one short video for any set of layers, by name.

A ``LayeredClip`` is what a corpus row stores of every clip: one foreground. A ``LayerStack`` is
what a model of a ``LayerSet`` sees of it: one foreground, or several with their own mattes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from layerflow.clip import (
    ALPHA,
    BACKGROUND,
    BLENDED,
    F32,
    FOREGROUND,
    KINDS,
    LAYERS,
    U8,
    LayeredClip,
    from_level,
    on_grey,
    resize_cover,
    resize_matted,
    to_float,
)
from layerflow.layer_set import EFFECTS, LayerSet, compose, layer_set, matte_of

FAINT = 1e-4  # weight of an object's continued colour where it is not seen


@dataclass(frozen=True)
class LayerStack:
    """The frames of all layers of one short video.

    layers: the set of which these are. frames: name -> uint8, colours straight ``[T, H, W, 3]`` and
    mattes ``[T, H, W]``: the first foregrounds of the set, each with its matte (in ``rgb`` too,
    where the network does not see it), effects with theirs if the set has them, background and
    blended. prompts: layer -> text. The rest as of ``LayeredClip``.

    Raises ValueError on construction when names, shapes, dtypes or prompts do not fit together.
    """

    layers: LayerSet
    frames: Mapping[str, U8]
    prompts: Mapping[str, str] = field(default_factory=dict)
    fps: float = 8.0
    kind: str = "pasted"
    alpha_kind: str = "soft"
    background_kind: str = "real"

    def __post_init__(self) -> None:
        own = [*self.foregrounds, *(name for name in (EFFECTS,) if name in self.layers.layers)]
        wanted = {*own, *map(matte_of, own), BACKGROUND, BLENDED}
        if not self.foregrounds or set(self.frames) != wanted:
            raise ValueError(
                f"{self.layers.name} has {', '.join(self.layers.layers)} (foregrounds from the "
                f"first one on, each with its matte), not {', '.join(self.frames)}"
            )
        size = self.frames[BLENDED].shape[:3]
        for name, layer in self.frames.items():
            shape = size if name.startswith(ALPHA) else (*size, 3)
            if layer.dtype != np.uint8 or layer.shape != shape or not layer.size:
                raise ValueError(
                    f"{name} must be uint8 {list(shape)} like blended and not empty, "
                    f"not {layer.dtype} {list(layer.shape)}"
                )
        if unknown := set(self.prompts) - set(self.layers.prompted):
            raise ValueError(f"no prompts of {sorted(unknown)} in {self.layers.name}")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, not {self.kind!r}")
        if not self.fps > 0:
            raise ValueError(f"fps must be positive, not {self.fps}")

    @property
    def foregrounds(self) -> tuple[str, ...]:
        """The foregrounds that are there, back to front."""
        known = self.layers.foregrounds
        count = next((i for i, name in enumerate(known) if name not in self.frames), len(known))
        return known[:count]

    @property
    def names(self) -> tuple[str, ...]:
        """The layers that a network sees, in the order of its sequence."""
        return self.layers.with_foregrounds(len(self.foregrounds))

    @property
    def prompted(self) -> tuple[str, ...]:
        """The layers with a prompt that are there, in order."""
        return tuple(name for name in self.layers.prompted if name in self.frames)

    @property
    def over(self) -> tuple[str, ...]:
        """The colour layers over the background, back to front."""
        return tuple(name for name in self.layers.over if name in self.frames)

    @property
    def num_frames(self) -> int:
        return len(self.frames[BLENDED])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        _, height, width, _ = self.frames[BLENDED].shape
        return height, width

    def layer(self, name: str) -> U8:
        if name not in self.frames:
            raise ValueError(f"no layer {name!r}; the layers are {', '.join(self.frames)}")
        return self.frames[name]

    def each(self, change: Callable[[U8], U8]) -> LayerStack:
        """The stack with every layer's frames changed alike: mirrored, cut, reversed."""
        return replace(self, frames={name: change(layer) for name, layer in self.frames.items()})

    def take(self, frames: slice | Sequence[int]) -> LayerStack:
        """The stack with only the chosen frames."""
        return self.each(lambda layer: layer[frames if isinstance(frames, slice) else [*frames]])

    def resized(self, height: int, width: int) -> LayerStack:
        """All layers together, scaled to cover and cropped: ``resize_matted`` for those with a
        matte."""
        if self.size == (height, width):
            return self
        made = {
            name: resize_cover(self.frames[name], height, width) for name in (BACKGROUND, BLENDED)
        }
        for name in self.over:
            pair = resize_matted(self.frames[name], self.frames[matte_of(name)], height, width)
            made |= dict(zip((name, matte_of(name)), pair, strict=True))
        return replace(self, frames={name: made[name] for name in self.frames})

    def pixels(self) -> F32:
        """What the network sees: float32 ``[n, T, H, W, 3]`` in [-1, 1], layers as ``names``.

        Layers with a matte lie on mid-grey, a matte is three equal channels.
        """
        return np.stack([self._pixels(name) for name in self.names])

    def _pixels(self, name: str) -> F32:
        layer = self.frames[name]
        if name in self.over:
            return on_grey(layer, self.frames[matte_of(name)])
        values = to_float(layer)
        return values if values.ndim == 4 else np.repeat(values[..., None], 3, axis=-1)

    def recomposed(self) -> U8:
        """The layers over the background by the over operator, rounded once."""
        return np.stack([_recomposed(self, t, self.over) for t in range(self.num_frames)])

    def joined(self) -> LayeredClip:
        """The clip with all foregrounds joined into one, and effects in the background."""
        pairs = [(self.frames[name], self.frames[matte_of(name)]) for name in self.foregrounds]
        foreground, alpha = pairs[0] if len(pairs) == 1 else join(pairs)
        background = self.frames[BACKGROUND]
        if EFFECTS in self.frames:
            count = range(self.num_frames)
            background = np.stack([_recomposed(self, t, (EFFECTS,)) for t in count])
        subject = [self.prompts.get(name, "") for name in reversed(self.foregrounds)]
        return LayeredClip(
            foreground,
            alpha,
            background,
            self.frames[BLENDED],
            {
                **{name: self.prompts.get(name, "") for name in (BACKGROUND, BLENDED)},
                FOREGROUND: joined_prompt(subject),
            },
            self.fps,
            self.kind,
            self.alpha_kind,
            self.background_kind,
        )


def _recomposed(stack: LayerStack, t: int, over: tuple[str, ...]) -> U8:
    layers: dict[str, F32] = {BACKGROUND: stack.frames[BACKGROUND][t].astype(np.float32)}
    for name in over:
        layers[name] = stack.frames[name][t].astype(np.float32)
        layers[matte_of(name)] = stack.frames[matte_of(name)][t].astype(np.float32) / 255.0
    return from_level(compose(layers, over))


def stack_of(clip: LayeredClip, layers: LayerSet | None = None) -> LayerStack:
    """A clip as a stack with one foreground. layers: the set; None: ``rgba``.

    ValueError for a set with effects, which a clip has none of.
    """
    return LayerStack(
        layers or layer_set("rgba"),
        {name: clip.layer(name) for name in LAYERS},
        dict(clip.prompts),
        clip.fps,
        clip.kind,
        clip.alpha_kind,
        clip.background_kind,
    )


def sampled_stack(
    layers: Mapping[str, U8 | None], prompts: Mapping[str, str], fps: float
) -> LayerStack:
    """Layers as the pipeline gives them as a stack of the set that has these: of an RGBA foreground
    the colour, and alpha 255 where the model has none (None).

    ValueError for layers that belong to no set.
    """
    known = {name: frames for name, frames in layers.items() if frames is not None}
    plain = {
        name: np.ascontiguousarray(frames[..., :3] if frames.ndim == 4 else frames)
        for name, frames in known.items()
    }
    count = sum(name.partition(".")[0] == FOREGROUND for name in known)
    name = f"rgbax{count}" if count > 1 else "rgba" if ALPHA in known else "rgb"
    chosen = layer_set(f"{name}+{EFFECTS}" if EFFECTS in known else name)
    if ALPHA not in known:
        plain[ALPHA] = np.full(plain[BLENDED].shape[:3], 255, np.uint8)
    texts = {layer: text for layer, text in prompts.items() if layer in chosen.prompted}
    return LayerStack(chosen, plain, texts, fps)


def shared(count: int, most: int) -> list[range]:
    """Which of ``count`` objects, back to front, make each of at most ``most`` foregrounds.

    Each makes its own; where there are more, the hindmost ones are joined into the first: what
    stands in front is seen best and stays single.
    """
    behind = max(0, count - most)
    return [range(behind + 1), *(range(i, i + 1) for i in range(behind + 1, count))][:count]


def join(pairs: Sequence[tuple[U8, U8]]) -> tuple[U8, U8]:
    """Several foregrounds as one, by the over operator: straight colour and alpha.

    pairs: colour uint8 ``[T, H, W, 3]`` and alpha uint8 ``[T, H, W]``, back to front. The colour is
    the mean of theirs by what is seen of each; where nothing is, the mean of their continuations.
    """
    colours, alphas = np.empty_like(pairs[0][0]), np.empty_like(pairs[0][1])
    for t in range(len(alphas)):
        clear = np.ones(alphas.shape[1:], np.float32)
        ink = np.zeros(colours.shape[1:], np.float32)
        weight = np.zeros(alphas.shape[1:], np.float32)
        for colour, alpha in reversed(pairs):
            own = alpha[t].astype(np.float32) / 255.0
            share = clear * own + FAINT
            ink += share[..., None] * colour[t]
            weight += share
            clear *= 1.0 - own
        colours[t] = from_level(ink / weight[..., None])
        alphas[t] = from_level((1.0 - clear) * 255.0)
    return colours, alphas


def joined_prompt(texts: Sequence[str]) -> str:
    """The prompt of foregrounds that are joined: theirs, front to back, each once."""
    return ", ".join(dict.fromkeys(text for text in texts if text))
