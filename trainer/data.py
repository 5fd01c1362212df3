"""From draws to tensors: the parts of a stage's mixture, and batches of them, prepared ahead.

A source is any object with ``len(source)`` and ``source.item(i)`` that gives `moments` (float32
``[4, 2C, f, h, w]``: mean and log-variance of each layer) and `prompt_embeds` (float32
``[3, L, D]``). `layerflow.corpus.latents.Latents` is one.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from layerflow.clip import LAYERS
from layerflow.model.layers import given_layers
from layerflow.seeds import keyed
from manifests.train import TrainManifest
from manifests.train_stage import Component, Stage
from trainer.order import Draw, Order, share

NO_LOGVAR = -30.0  # log-variance of latents without a posterior; nothing to sample


class ClipSource(Protocol):
    def __len__(self) -> int: ...
    def item(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class MixturePart:
    """Rows of one source, as one component of a mixture shows them."""

    source: ClipSource
    rows: Sequence[int]
    shapes: Sequence[tuple[int, int, int]]
    """Of each of `rows`: latent frames, height and width, as the network sees them."""
    motion_gate: int = 0
    freeze: bool = False

    def show(self, index: int, latents: NDArray[np.float32], moment: float) -> NDArray[np.float32]:
        """``[4, f, C, h, w]`` of one of `rows` in its length here: a still repeated, and of a clip
        to freeze the frame at `moment`, in [0, 1) of its length."""
        if self.freeze:
            frame = int(moment * latents.shape[1])
            latents = latents[:, frame : frame + 1]
        frames = self.shapes[index][0]
        return latents if latents.shape[1] == frames else np.repeat(latents, frames, axis=1)


@dataclass
class Batch:
    """Samples of one shape, what `layerflow.model.objective.layer_loss` takes, in its order."""

    latents: torch.Tensor
    """float32 [B, 4, f, C, h, w], clean"""
    prompt_embeds: torch.Tensor
    """float32 [B, 3, L, D]"""
    given: torch.Tensor
    """bool [B, 4]"""
    timesteps: torch.Tensor
    """[B], times of the base's noise process"""
    noise: torch.Tensor
    """like latents"""
    motion_gate: torch.Tensor
    """float32 [B]: stills and video mix in a batch"""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self.tensors()))

    def pin(self) -> Batch:
        return Batch(*(tensor.pin_memory() for tensor in self.tensors()))

    def split(self, size: int) -> list[Batch]:
        """The same in batches of at most `size` samples."""
        pieces = zip(*(tensor.split(size) for tensor in self.tensors()), strict=True)
        return [Batch(*piece) for piece in pieces]

    @property
    def size(self) -> int:
        return len(self.timesteps)


def open_parts(manifest: TrainManifest, stage: Stage) -> list[MixturePart]:
    """The parts of a stage's mixture. ValueError for absent latents or a filter without rows."""
    opened = {c.latents: open_latents(manifest.folder(c.latents)) for c in stage.mixture}
    chosen = [(c, opened[c.latents], select_rows(opened[c.latents], c)) for c in stage.mixture]
    longest = 1
    for _, source, rows in chosen:
        frames = source.column("latent_frames")
        longest = max(longest, max(frames[row] for row in rows))
    return [make_part(component, source, rows, longest) for component, source, rows in chosen]


def open_latents(folder: str | Path) -> Any:
    from layerflow.corpus.latents import Latents  # here, so that the loop itself needs no pyarrow

    return Latents.open(folder)


def select_rows(source: Any, component: Component) -> list[int]:
    """The rows that a component's filters leave. ValueError if they leave none."""
    rows = list(range(len(source)))
    for column, allowed in (("kind", component.kinds), ("alpha_kind", component.alpha_kinds)):
        if allowed:
            values = source.column(column)
            rows = [row for row in rows if values[row] in allowed]
    if not rows:
        raise ValueError(
            f"{component.latents}: none of its {len(source)} rows is of kinds "
            f"{component.kinds or 'any'} and alpha kinds {component.alpha_kinds or 'any'}"
        )
    return rows


def make_part(component: Component, source: Any, rows: Sequence[int], longest: int) -> MixturePart:
    """A component's rows with the shapes in which the network sees them."""
    frames, height, width = (
        source.column(f"latent_{axis}") for axis in ("frames", "height", "width")
    )

    def shown(row: int) -> int:
        if component.freeze:
            return component.frames or (frames[row] if frames[row] > 1 else longest)
        return component.frames or longest if frames[row] == 1 else frames[row]

    shapes = [(shown(row), height[row], width[row]) for row in rows]
    return MixturePart(source, rows, shapes, component.motion_gate, component.freeze)


def buckets(parts: Sequence[MixturePart]) -> dict[tuple[int, int, int], int]:
    """Shape -> clips of that shape, smallest first: what a forward pass never mixes."""
    counts = Counter(shape for part in parts for shape in part.shapes)
    return dict(sorted(counts.items()))


def buckets_text(found: Mapping[tuple[int, int, int], int]) -> str:
    """Buckets in words: latent frames x height x width, and how many clips have them."""
    return ", ".join(f"{f}x{h}x{w} ({count} clips)" for (f, h, w), count in found.items())


def check_alike(parts: Sequence[MixturePart], stage: str) -> None:
    """ValueError unless all clips have one shape, as a sharded stage needs it: workers that see
    different numbers of shapes make different numbers of passes, and hang."""
    found = buckets(parts)
    if len(found) > 1:
        raise ValueError(
            f"stage {stage!r}: parallel fsdp needs clips of one shape, not {list(found)}; "
            "set `frames`, or encode at one size"
        )


class Batches:
    """All batches of one stage, for one rank.

    uneven: the batch need not divide among the ranks and passes; some then get a sample less.
    """

    def __init__(
        self,
        parts: Sequence[MixturePart],
        order: Order,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        uneven: bool = False,
    ) -> None:
        if order.batch % (world * accumulate) and not uneven:
            raise ValueError(
                f"stage {order.stage!r}: a batch of {order.batch} does not divide among {world} "
                f"workers x {accumulate} accumulation steps; change one of them"
            )
        self.parts, self.order = parts, order
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def step(self, step: int) -> list[Batch]:
        """This rank's share of a step, in `accumulate` or more batches of one shape each.

        The batch is dealt into world x accumulate parts, of which each rank takes every world-th:
        which samples stand together depends on the number of parts alone.
        """
        draws = sorted(self.order.step(step), key=lambda draw: (self._shape(draw), draw.number))
        parts = self.world * self.accumulate
        batches = []
        for part in range(self.rank, parts, self.world):
            chunk = share(draws, part, parts)
            for shape in sorted({self._shape(draw) for draw in chunk}):
                batches.append(self._collate([d for d in chunk if self._shape(d) == shape]))
        return batches

    def _shape(self, draw: Draw) -> tuple[int, int, int]:
        return self.parts[draw.component].shapes[draw.row]

    def _collate(self, draws: Sequence[Draw]) -> Batch:
        samples = [self.sample(draw) for draw in draws]
        latents, noise, text = (
            torch.from_numpy(np.stack([sample[i] for sample in samples])) for i in range(3)
        )
        given = [[layer in given_layers(draw.task) for layer in LAYERS] for draw in draws]
        gates = [float(self.parts[draw.component].motion_gate) for draw in draws]
        return Batch(
            latents=latents,
            noise=noise,
            prompt_embeds=text,
            given=torch.tensor(given),
            timesteps=torch.tensor([draw.timestep for draw in draws]),
            motion_gate=torch.tensor(gates),
        )

    def sample(
        self, draw: Draw
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Latents and noise, float32 [4, f, C, h, w], and prompt embeddings of one draw."""
        part = self.parts[draw.component]
        item = part.source.item(part.rows[draw.row])
        rng = keyed(self.order.seed, self.order.stage, "noise", draw.number)
        latents = part.show(draw.row, draw_posterior(item["moments"], rng), draw.frame)
        noise = rng.standard_normal(latents.shape, np.float32)
        text = item["prompt_embeds"]
        if any(draw.drop):
            text = text * ~np.asarray(draw.drop)[:, None, None]
        return latents, noise, text

    def stream(
        self, start: int, stop: int, prefetch: int = 0
    ) -> Generator[list[Batch], None, None]:
        """Steps `start` to `stop` - 1; with `prefetch`, that many prepared ahead in a thread."""
        if prefetch < 1:
            yield from (self.step(step) for step in range(start, stop))
            return
        with closing(_ahead(self, start, stop, prefetch)) as batches:
            yield from batches


def draw_posterior(moments: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """mean + std * noise of ``[4, 2C, f, h, w]`` moments, as ``[4, f, C, h, w]``."""
    mean, logvar = np.split(moments, 2, axis=1)
    if logvar.max() > NO_LOGVAR:
        mean = mean + np.exp(0.5 * logvar) * rng.standard_normal(mean.shape, np.float32)
    return np.ascontiguousarray(mean.swapaxes(1, 2), np.float32)


def _ahead(
    batches: Batches, start: int, stop: int, depth: int
) -> Generator[list[Batch], None, None]:
    waiting: queue.Queue[list[Batch] | BaseException] = queue.Queue(depth)
    stopped = threading.Event()
    pin = torch.cuda.is_available()

    def put(value: list[Batch] | BaseException) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(value, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(start, stop):
                if stopped.is_set():
                    return
                prepared = batches.step(step)
                put([batch.pin() for batch in prepared] if pin else prepared)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            value = waiting.get()
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()
