"""From draws to tensors: the parts of a stage's mixture, and batches of them, prepared ahead.

A source is any object with ``len(source)`` and ``source.item(i)`` that gives `moments` (float32
``[n, 2C, f, h, w]``: mean and log-variance of each layer), `prompt_embeds` (float32 ``[p, L, D]``)
and `layers`, the names of the n layers, of which p have prompts; without names they are those of
``rgba``. `layerflow.corpus.latents.Latents` is one.

A model may have fewer layers than its latents, and a clip fewer foregrounds than its model: a
sample holds the layers that both have. Samples of one forward pass have the same layers.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from layerflow.clip import LAYERS
from layerflow.layer_set import LayerSet, layer_set, model_layers, prompted_of
from layerflow.model.layers import given_layers
from layerflow.seeds import keyed
from manifests.train import TrainManifest
from manifests.train_stage import Component, Stage
from trainer.ahead import ahead, depth
from trainer.layers import (
    foregrounds,
    given_marks,
    shared_layers,
    stored_set,
    take_layers,
)
from trainer.order import BucketOrder, Draw, Order, share

NO_LOGVAR = -30.0  # log-variance of latents without a posterior; nothing to sample


Tensors: TypeAlias = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]


class ClipSource(Protocol):
    def __len__(self) -> int: ...
    def item(self, index: int) -> dict[str, Any]: ...


class Shape(NamedTuple):
    """What the samples of a forward pass have in common: latent frames, height and width, as the
    network sees them, and layers."""

    frames: int
    height: int
    width: int
    layers: tuple[str, ...] = LAYERS


@dataclass(frozen=True)
class MixturePart:
    """Rows of one source, as one component of a mixture shows them."""

    source: ClipSource
    rows: Sequence[int]
    shapes: Sequence[Shape]
    """Of each of `rows`."""
    motion_gate: int = 0
    freeze: bool = False

    def show(self, index: int, latents: NDArray[Any], moment: float) -> NDArray[Any]:
        """``[n, f, ...]`` of one of `rows` in its length here: a still repeated, and of a clip
        to freeze the frame at `moment`, in [0, 1) of its length."""
        if self.freeze:
            frame = int(moment * latents.shape[1])
            latents = latents[:, frame : frame + 1]
        frames = self.shapes[index].frames
        return latents if latents.shape[1] == frames else np.repeat(latents, frames, axis=1)


@dataclass
class Batch:
    """Samples of one shape, what `layerflow.model.objective.layer_loss` takes, in its order."""

    latents: torch.Tensor
    """float32 [B, n, f, C, h, w], clean"""
    prompt_embeds: torch.Tensor
    """float32 [B, p, L, D]"""
    given: torch.Tensor
    """bool [B, n]"""
    timesteps: torch.Tensor
    """[B], times of the base's noise process"""
    noise: torch.Tensor
    """like latents"""
    motion_gate: torch.Tensor
    """float32 [B]: stills and video mix in a batch"""
    layers: tuple[str, ...] = LAYERS
    """The n layers of all samples, of which p have prompts."""
    known: torch.Tensor | None = None
    """bool [B, n, f, h, w]: what the loss is taken over; None: everything"""

    def tensors(self) -> Tensors:
        return (
            self.latents,
            self.prompt_embeds,
            self.given,
            self.timesteps,
            self.noise,
            self.motion_gate,
        )

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        found = {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in found.items()})

    def split(self, size: int) -> list[Batch]:
        """The same in batches of at most `size` samples."""
        parts = (slice(start, start + size) for start in range(0, self.size, size))
        return [self._each(operator.itemgetter(part)) for part in parts]

    @property
    def size(self) -> int:
        return len(self.timesteps)


def open_parts(manifest: TrainManifest, stage: Stage) -> list[MixturePart]:
    """The parts of a stage's mixture. ValueError for absent latents, a filter without rows, and
    layers that do not fit the model or the tasks."""
    opened = {c.latents: open_latents(manifest.folder(c.latents)) for c in stage.mixture}
    layers = model_layers(manifest.model)
    chosen = [(c, opened[c.latents], select_rows(opened[c.latents], c)) for c in stage.mixture]
    longest = 1
    for _, source, rows in chosen:
        frames = source.column("latent_frames")
        longest = max(longest, max(frames[row] for row in rows))
    parts = [make_part(c, source, rows, longest, layers) for c, source, rows in chosen]
    check_tasks(parts, [task for task, weight in stage.tasks.items() if weight], layers)
    return parts


def open_latents(folder: str | Path) -> Any:
    from layerflow.corpus.remote import latents  # here, so that the loop itself needs no pyarrow

    return latents.open_latents(folder)


def select_rows(source: Any, component: Component) -> list[int]:
    """The rows that a component's filters leave. ValueError if they leave none."""
    rows = list(range(len(source)))
    for column, allowed in (("kind", component.kinds), ("alpha_kind", component.alpha_kinds)):
        if allowed:
            values = source.column(column)
            rows = [row for row in rows if values[row] in allowed]
    if component.foregrounds:
        counts = foregrounds(source)
        rows = [row for row in rows if counts[row] in component.foregrounds]
    if not rows:
        raise ValueError(
            f"{component.latents}: none of its {len(source)} rows is of kinds "
            f"{component.kinds or 'any'} and alpha kinds {component.alpha_kinds or 'any'}, with "
            f"{component.foregrounds or 'any number of'} foregrounds"
        )
    return rows


def check_tasks(parts: Sequence[MixturePart], tasks: Sequence[str], layers: LayerSet) -> None:
    """ValueError for a task that the model's layers do not have, or that leaves nothing to be
    generated of some clips."""
    for task in tasks:
        given_layers(task, layers.layers)
        for present in {shape.layers for part in parts for shape in part.shapes}:
            if all(given_marks(task, layers, present)):
                raise ValueError(
                    f"task {task!r} gives all layers of clips with {', '.join(present)}: nothing "
                    "is left to generate; leave such clips out with `foregrounds`"
                )


def make_part(
    component: Component, source: Any, rows: Sequence[int], longest: int, layers: LayerSet
) -> MixturePart:
    """A component's rows with the shapes in which a network of these layers sees them."""
    frames, height, width = (
        source.column(f"latent_{axis}") for axis in ("frames", "height", "width")
    )

    def shown(row: int) -> int:
        if component.freeze:
            return component.frames or (frames[row] if frames[row] > 1 else longest)
        return component.frames or longest if frames[row] == 1 else frames[row]

    stored, counts = stored_set(source), foregrounds(source)
    try:
        found = {n: shared_layers(layers, stored, n) for n in {counts[row] for row in rows}}
    except ValueError as error:
        raise ValueError(f"{component.latents}: {error}") from error
    shapes = [Shape(shown(row), height[row], width[row], found[counts[row]]) for row in rows]
    return MixturePart(source, rows, shapes, component.motion_gate, component.freeze)


def buckets(parts: Sequence[MixturePart]) -> dict[Shape, int]:
    """Shape -> clips of that shape, smallest first: what a forward pass never mixes."""
    counts = Counter(shape for part in parts for shape in part.shapes)
    return dict(sorted(counts.items()))


def buckets_text(found: Mapping[Shape, int]) -> str:
    """Buckets in words, and how many clips have them."""
    return ", ".join(f"{bucket_name(shape, found)} ({n} clips)" for shape, n in found.items())


def bucket_name(shape: Shape, found: Collection[Shape]) -> str:
    """A bucket in words: latent frames x height x width; where the numbers of layers of those that
    were found differ, those too."""
    size = "x".join(map(str, shape[:3]))
    mixed = len({each.layers for each in found}) > 1
    return f"{len(shape.layers)} layers of {size}" if mixed else size


class Batches:
    """All batches of one stage, for one rank.

    uneven: the batch need not divide among the ranks and passes; some then get a sample less.
    layers: the model's. masked: batches say what is known. alike: all ranks make as many passes,
    as a sharded network needs, where their shapes or samples are not as many: the others then
    compute one in which nothing is left to generate, and the loss is 0.
    """

    def __init__(
        self,
        parts: Sequence[MixturePart],
        order: Order | BucketOrder,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        uneven: bool = False,
        layers: LayerSet = layer_set("rgba"),
        masked: bool = False,
        alike: bool = False,
    ) -> None:
        if isinstance(order, Order) and order.batch % (world * accumulate) and not uneven:
            raise ValueError(
                f"stage {order.stage!r}: a batch of {order.batch} does not divide among {world} "
                f"workers x {accumulate} accumulation steps; change one of them"
            )
        self.parts, self.order, self.layers = parts, order, layers
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.masked, self.alike = masked, alike

    def step(self, step: int) -> list[Batch]:
        """This rank's share of a step, in `accumulate` or more batches of one shape each.

        The batch is dealt into world x accumulate parts, of which each rank takes every world-th:
        which samples stand together depends on the number of parts alone.
        """
        draws = self._draws(step)
        own = self._passes(draws, self.rank)
        batches = [self._collate(each) for each in own]
        if self.alike:
            most = max(len(self._passes(draws, rank)) for rank in range(self.world))
            if most > len(own):
                one = self._collate(draws[:1])
                batches += [replace(one, given=torch.ones_like(one.given))] * (most - len(own))
        return batches

    def _passes(self, draws: Sequence[Draw], rank: int) -> list[list[Draw]]:
        """What a rank computes of a step's draws, which are sorted by shape."""
        passes = []
        for chunk in self._dealt(draws, rank):
            for shape in sorted({self._shape(draw) for draw in chunk}):
                passes.append([draw for draw in chunk if self._shape(draw) == shape])
        return passes

    def _draws(self, step: int) -> list[Draw]:
        return sorted(self.order.step(step), key=lambda draw: (self._shape(draw), draw.number))

    def _dealt(self, draws: Sequence[Draw], rank: int) -> list[list[Draw]]:
        parts = self.world * self.accumulate
        return [share(draws, part, parts) for part in range(rank, parts, self.world)]

    def wish(self, step: int) -> None:
        """Let sources that can read ahead begin with this rank's rows of a step."""
        for draw in (draw for chunk in self._dealt(self._draws(step), self.rank) for draw in chunk):
            part = self.parts[draw.component]
            if begin := getattr(part.source, "read_ahead", None):
                begin([part.rows[draw.row]])

    def _shape(self, draw: Draw) -> Shape:
        return self.parts[draw.component].shapes[draw.row]

    def _collate(self, draws: Sequence[Draw]) -> Batch:
        samples = [self.sample(draw) for draw in draws]
        latents, noise, text = (
            torch.from_numpy(np.stack([sample[i] for sample in samples])) for i in range(3)
        )
        layers = self._shape(draws[0]).layers
        given = [given_marks(draw.task, self.layers, layers) for draw in draws]
        gates = [float(self.parts[draw.component].motion_gate) for draw in draws]
        return Batch(
            latents=latents,
            noise=noise,
            prompt_embeds=text,
            given=torch.tensor(given),
            timesteps=torch.tensor([draw.timestep for draw in draws]),
            motion_gate=torch.tensor(gates),
            layers=layers,
            known=torch.from_numpy(np.stack([s[3] for s in samples])) if self.masked else None,
        )

    def sample(
        self, draw: Draw
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Latents and noise, float32 [n, f, C, h, w], prompt embeddings, and what is known of the
        latents, bool [n, f, h, w], of one draw."""
        part, layers = self.parts[draw.component], self._shape(draw).layers
        item = take_layers(part.source.item(part.rows[draw.row]), layers)
        rng = keyed(self.order.seed, self.order.stage, "noise", draw.number)
        latents = part.show(draw.row, draw_posterior(item["moments"], rng), draw.frame)
        noise = rng.standard_normal(latents.shape, np.float32)
        text = item["prompt_embeds"]
        if any(draw.drop):
            dropped = dict(zip(self.layers.prompted, draw.drop, strict=True))
            here = np.asarray([dropped[layer] for layer in prompted_of(layers)])
            text = text * ~here[:, None, None]
        return latents, noise, text, part.show(draw.row, known_of(item), draw.frame)

    def stream(
        self, start: int, stop: int, prefetch: int | None = 0
    ) -> Generator[list[Batch], None, None]:
        """Steps `start` to `stop` - 1; with `prefetch`, that many prepared ahead in a thread.

        None: as many as pay here (`depth`).
        """
        number = depth(self) if prefetch is None else prefetch
        if number < 1:
            yield from (self.step(step) for step in range(start, stop))
            return
        with closing(ahead(self, start, stop, number)) as batches:
            yield from batches


def known_of(item: Mapping[str, Any]) -> NDArray[np.bool_]:
    """What is known of an item of a source, bool ``[n, f, h, w]``."""
    moments, known = item["moments"], item.get("known")
    shape = (*moments.shape[:1], *moments.shape[2:])
    return np.ones(shape, np.bool_) if known is None else known


def draw_posterior(moments: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """mean + std * noise of ``[n, 2C, f, h, w]`` moments, as ``[n, f, C, h, w]``."""
    mean, logvar = np.split(moments, 2, axis=1)
    if logvar.max() > NO_LOGVAR:
        mean = mean + np.exp(0.5 * logvar) * rng.standard_normal(mean.shape, np.float32)
    return np.ascontiguousarray(mean.swapaxes(1, 2), np.float32)
