"""Where the clips of an evaluation come from: sampled from a model, or read from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from layerflow.clip import (
    ALPHA,
    BACKGROUND,
    BLENDED,
    FOREGROUND,
    U8,
    LayeredClip,
    resize_clip,
    sampled_layers,
)
from layerflow.corpus.row_cells import read_clip
from layerflow.media.cells import MediaError


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


Pair = tuple[str, LayeredClip, LayeredClip]


def pairs(
    request: EvaluateRequest, layers: Sequence[str], skipped: dict[str, str]
) -> Iterator[Pair]:
    """Id, prediction and truth of each clip, in one size and length. What cannot be used goes to
    `skipped` with the reason."""
    if request.predictions is not None:
        return read_pairs(request, request.predictions, skipped)
    return sampled_pairs(request, layers, skipped)


def read_pairs(
    request: EvaluateRequest, predictions: Path, skipped: dict[str, str]
) -> Iterator[Pair]:
    from layerflow.corpus.table import Corpus

    corpus, find = Corpus.open(request.corpus), reader(predictions)
    for index, id_ in enumerate(corpus.ids()[: request.count]):
        predicted = find(id_)
        if predicted is None:
            skipped[id_] = "no prediction"
            continue
        truth = read_truth(corpus.row(index), (*predicted.size, predicted.num_frames))
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
    corpus = Corpus.open(request.corpus)

    def truths() -> Iterator[tuple[str, LayeredClip]]:
        for index, id_ in enumerate(corpus.ids()):
            truth = read_truth(corpus.row(index), size)
            if isinstance(truth, str):
                skipped[id_] = truth
            else:
                yield id_, truth

    wanted, seed = islice(truths(), request.count), request.seed
    while batch := list(islice(wanted, request.batch)):
        clips = [truth for _, truth in batch]
        seeds = range(seed, seed + len(batch))
        made = complete(pipe, clips, layers, steps=steps, guidance=guidance, seeds=seeds)
        for (id_, truth), predicted in zip(batch, made, strict=True):
            yield id_, predicted, truth
        seed += len(batch)


def read_truth(row: Mapping[str, Any], size: tuple[int, int, int]) -> LayeredClip | str:
    """A row's clip by ``fit``, size: height, width and frames; else why it cannot be used."""
    try:
        clip = fit(read_clip(row), *size)
    except MediaError as error:
        return str(error)
    return f"fewer than {size[2]} frames" if clip is None else clip


def fit(clip: LayeredClip, height: int, width: int, frames: int) -> LayeredClip | None:
    """The clip in a size and length, its frames taken evenly; None if it has too few."""
    if clip.num_frames < frames:
        return None
    moments = np.rint(np.linspace(0, clip.num_frames - 1, frames)).astype(int)
    chosen = clip if clip.num_frames == frames else clip.take([int(m) for m in moments])
    return resize_clip(chosen, height, width)


def complete(
    pipe: Any,
    clips: Sequence[LayeredClip],
    layers: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seeds: Sequence[int],
    prompt_embeds: Any = None,
) -> list[LayeredClip]:
    """Each clip's missing layers from its given `layers` and prompts, in one batch.

    prompt_embeds: ``[N, P, L, D]`` instead of the clips' prompts.
    """
    import torch

    height, width = clips[0].size
    made = pipe(
        prompt=None if prompt_embeds is not None else [dict(clip.prompts) for clip in clips],
        prompt_embeds=prompt_embeds,
        given=[{layer: clip.layer(layer) for layer in layers} for clip in clips],
        height=height,
        width=width,
        num_frames=clips[0].num_frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="uint8",
    )
    return [replace(clip, **sampled_layers(made.sample(i))) for i, clip in enumerate(clips)]


def reader(folder: Path) -> Callable[[str], LayeredClip | None]:
    """Id -> prediction, from a corpus or a folder of folders; None where there is none."""
    if (folder / "state.json").is_file():
        from layerflow.corpus.table import Corpus

        corpus = Corpus.open(folder)
        places = {id_: index for index, id_ in enumerate(corpus.ids())}
        return lambda id_: read_clip(corpus.row(places[id_])) if id_ in places else None
    if not folder.is_dir():
        raise ValueError(f"{folder} is neither a corpus nor a folder of predictions")
    return lambda id_: read_folder(folder / id_) if (folder / id_).is_dir() else None


def read_folder(folder: Path) -> LayeredClip:
    """A prediction as ``layerflow sample`` writes it. ValueError for a layer that is absent."""
    from layerflow.model.sample import read_file

    def read(*names: str) -> U8:
        for name in names:
            if (folder / name).is_file():
                return read_file(folder / name)[0]
        raise ValueError(f"{folder}: none of {', '.join(names)} is there")

    alpha = read("alpha.mkv", "foreground.mov", "foreground.webm")
    layers = {
        FOREGROUND: read("foreground.mov", "foreground.webm", "foreground.mp4"),
        ALPHA: alpha[..., -1] if alpha.ndim == 4 else alpha,
        BACKGROUND: read("background.mp4"),
        BLENDED: read("blended.mp4"),
    }
    return LayeredClip(**sampled_layers(layers))
