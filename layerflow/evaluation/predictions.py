"""Where the clips of an evaluation come from: sampled from a model, or read from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from layerflow.clip import (
    ALPHA,
    BACKGROUND,
    BLENDED,
    FOREGROUND,
    U8,
    LayeredClip,
    from_float,
    on_grey,
    sampled_layers,
)
from layerflow.corpus.row_stack import read_stack
from layerflow.layer_set import MAX_FOREGROUNDS, LayerSet, layer_set, matte_of, model_layers
from layerflow.media.cells import MediaError
from layerflow.media.layer_stack import LayerStack, sampled_stack


@dataclass(frozen=True)
class EvaluateRequest:
    """One call of ``layerflow evaluate``; None means the model's own value.

    Either model or predictions. predictions: a folder of `<id>/` as ``layerflow sample`` writes
    them, or a corpus, with the ids of the corpus' clips. tasks: names of tasks, or given layers
    joined by +. height, width: pixels; frames: of one layer. clip: folder of a CLIP model;
    aesthetic: file of a head on it.
    """

    corpus: Path
    out: Path
    model: Path | None = None
    predictions: Path | None = None
    tasks: Sequence[str] = ("decompose",)
    count: int | None = None
    seed: int = 0
    batch: int = 4
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    clip: Path | None = None
    aesthetic: Path | None = None


Pair = tuple[str, LayerStack, LayerStack]
SINGLES = layer_set(f"rgbax{MAX_FOREGROUNDS}")
"""The layers of what is read from files: each single foreground that is there."""


def known_layers(request: EvaluateRequest) -> LayerSet:
    """The set of layers that clips are compared in: the model's, or that of files."""
    return SINGLES if request.model is None else model_layers(request.model)


def pairs(
    request: EvaluateRequest, layers: Sequence[str], skipped: dict[str, str]
) -> Iterator[Pair]:
    """Id, prediction and truth of each clip, in one size and length. What cannot be used goes to
    `skipped` with the reason."""
    if request.predictions is not None:
        return read_pairs(request, request.predictions, layers, skipped)
    return sampled_pairs(request, layers, skipped)


def read_pairs(
    request: EvaluateRequest, predictions: Path, layers: Sequence[str], skipped: dict[str, str]
) -> Iterator[Pair]:
    from layerflow.corpus.table import Corpus

    corpus, find = Corpus.open(request.corpus), reader(predictions)
    for index, id_ in enumerate(corpus.ids()[: request.count]):
        predicted = find(id_)
        if predicted is None:
            skipped[id_] = "no prediction"
            continue
        size = (*predicted.size, predicted.num_frames)
        truth = read_truth(corpus.row(index), size, SINGLES, layers)
        if isinstance(truth, str):
            skipped[id_] = truth
            continue
        yield id_, predicted, truth


def sampled_pairs(
    request: EvaluateRequest, layers: Sequence[str], skipped: dict[str, str]
) -> Iterator[Pair]:
    """Clip number n of all is sampled from seed + n: neither the batch nor other clips matter."""
    from layerflow.corpus.table import Corpus
    from layerflow.model.info import sampling_settings
    from layerflow.model.sample import load_pipeline

    assert request.model is not None
    pipe = load_pipeline(request.model)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.default_size(request.height, request.width, request.frames)
    steps, guidance = sampling_settings(request.model, request.steps, request.guidance)
    corpus, known = Corpus.open(request.corpus), known_layers(request)

    def truths() -> Iterator[tuple[str, LayerStack]]:
        for index, id_ in enumerate(corpus.ids()):
            truth = read_truth(corpus.row(index), size, known, layers)
            if isinstance(truth, str):
                skipped[id_] = truth
            else:
                yield id_, truth

    wanted, seed = islice(truths(), request.count), request.seed
    while batch := list(islice(wanted, request.batch)):
        made: dict[int, LayerStack] = {}
        for places in alike([truth.names for _, truth in batch]):
            clips, seeds = [batch[i][1] for i in places], [seed + i for i in places]
            done = complete(pipe, clips, layers, steps=steps, guidance=guidance, seeds=seeds)
            made |= dict(zip(places, done, strict=True))
        for place, (id_, truth) in enumerate(batch):
            yield id_, made[place], truth
        seed += len(batch)


def alike(values: Sequence[Any]) -> list[list[int]]:
    """The places of equal values: one pass of a model takes clips of the same layers."""
    places: dict[Any, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return list(places.values())


def read_truth(
    row: Mapping[str, Any], size: tuple[int, int, int], known: LayerSet, given: Sequence[str]
) -> LayerStack | str:
    """A row's layers by ``fit``, size: height, width and frames; else why it cannot be used: also
    when all of them are given."""
    try:
        clip = fit(read_stack(row, known), *size)
    except MediaError as error:
        return str(error)
    if clip is None:
        return f"fewer than {size[2]} frames"
    return "all its layers are given" if set(clip.names) <= set(given) else clip


def fit(clip: LayerStack, height: int, width: int, frames: int) -> LayerStack | None:
    """The clip in a size and length, its frames taken evenly; None if it has too few."""
    if clip.num_frames < frames:
        return None
    moments = np.rint(np.linspace(0, clip.num_frames - 1, frames)).astype(int)
    chosen = clip if clip.num_frames == frames else clip.take([int(m) for m in moments])
    return chosen.resized(height, width)


Clip = TypeVar("Clip", LayeredClip, LayerStack)


def complete(
    pipe: Any,
    clips: Sequence[Clip],
    layers: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seeds: Sequence[int],
    prompt_embeds: Any = None,
) -> list[Clip]:
    """Each clip's missing layers from its given `layers` and prompts, in one batch. Stacks are of
    one number of foregrounds; of `layers` those are given that they have.

    prompt_embeds: ``[N, P, L, D]`` instead of the clips' prompts.
    """
    import torch

    height, width = clips[0].size
    made = pipe(
        prompt=None if prompt_embeds is not None else [dict(clip.prompts) for clip in clips],
        prompt_embeds=prompt_embeds,
        given=[_given(clip, layers) for clip in clips],
        height=height,
        width=width,
        num_frames=clips[0].num_frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="uint8",
        **_counted(clips[0]),
    )
    return [_filled(clip, made.sample(i)) for i, clip in enumerate(clips)]


def _counted(clip: LayeredClip | LayerStack) -> dict[str, int]:
    """How many foregrounds there are, for a model that may have several."""
    if isinstance(clip, LayerStack) and len(clip.layers.foregrounds) > 1:
        return {"foregrounds": len(clip.foregrounds)}
    return {}


def _given(clip: LayeredClip | LayerStack, layers: Sequence[str]) -> dict[str, U8]:
    if isinstance(clip, LayeredClip):
        return {layer: clip.layer(layer) for layer in layers}
    given = {layer: clip.layer(layer) for layer in layers if layer in clip.frames}
    if not clip.layers.mattes:  # what such a network knows of alpha is the grey below it
        for name in set(given) & set(clip.over):
            given[name] = from_float(on_grey(given[name], clip.layer(matte_of(name))))
    return given


def _filled(clip: Any, made: Mapping[str, U8 | None]) -> Any:
    """The clip with the layers of a sample."""
    if isinstance(clip, LayeredClip):
        return replace(clip, **sampled_layers(made))
    stack = sampled_stack(made, clip.prompts, clip.fps)
    return replace(stack, kind=clip.kind)


def reader(folder: Path) -> Callable[[str], LayerStack | None]:
    """Id -> prediction, from a corpus or a folder of folders; None where there is none."""
    if (folder / "state.json").is_file():
        from layerflow.corpus.table import Corpus

        corpus = Corpus.open(folder)
        places = {id_: index for index, id_ in enumerate(corpus.ids())}
        return lambda id_: read_stack(corpus.row(places[id_]), SINGLES) if id_ in places else None
    if not folder.is_dir():
        raise ValueError(f"{folder} is neither a corpus nor a folder of predictions")
    return lambda id_: read_folder(folder / id_) if (folder / id_).is_dir() else None


def read_folder(folder: Path) -> LayerStack:
    """A prediction as ``layerflow sample`` writes it: its single foregrounds where it has them, and
    ``rgb`` where it has no alpha. ValueError for a layer that is absent."""
    from layerflow.media.sample_files import read_objects, with_objects
    from layerflow.model.sample import read_file

    def read(*names: str) -> U8:
        for name in names:
            if (folder / name).is_file():
                return read_file(folder / name)[0]
        raise ValueError(f"{folder}: none of {', '.join(names)} is there")

    matted = "alpha.mkv", "foreground.mov", "foreground.webm"
    colours = {
        FOREGROUND: read("foreground.mov", "foreground.webm", "foreground.mp4"),
        BACKGROUND: read("background.mp4"),
        BLENDED: read("blended.mp4"),
    }
    if not any((folder / name).is_file() for name in matted):  # of a model without alpha
        return sampled_stack(colours, {}, 8.0)
    alpha = read(*matted)
    layers = {**colours, ALPHA: alpha[..., -1] if alpha.ndim == 4 else alpha}
    objects = read_objects(folder, lambda path: read_file(path)[0])
    return with_objects(layers, objects, 8.0) if objects else sampled_stack(layers, {}, 8.0)
