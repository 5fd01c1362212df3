"""The front door for Python: every command as a function with the command's options.

Each does what the command of its name does, and returns what was made instead of printing it. All
heavy imports happen inside the functions, those of the jobs and of the trainer too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.encode.job import EncodeSummary
    from pipelines.engine.jobs import Summary

PathLike = str | Path
Size = str | tuple[int, int]
"""Height and width in pixels: ``(480, 720)`` or ``"480x720"``."""
RUNTIME = ("workers", "accept_lost", "quiet")


def mine(
    inputs: PathLike | Sequence[PathLike],
    out: PathLike,
    size: Size,
    *,
    frames: int = 16,
    fps: float = 8.0,
    matting: str = "motion",
    weights: PathLike | None = None,
    gate: str = "standard",
    device: str = "cpu",
    inpaint: str = "opencv",
    inpaint_weights: PathLike | None = None,
    prompts: PathLike | None = None,
    caption_model: str | None = None,
    captioner: str | None = None,
    caption_url: str | None = None,
    caption_key_env: str | None = None,
    licence: str | None = None,
    attribution: str | None = None,
    workers: int | None = None,
    accept_lost: bool = False,
    quiet: bool = True,
) -> Summary:
    """Real video -> mined clips in the corpus ``out``: matte, foreground, background, scores.

    workers: Ray tasks at a time; None: all CPUs; 0: this process, without Ray. The other options
    are those of ``layerflow mine``. Raises ValueError for a request that cannot work.
    """
    content = _manifest(locals(), many=("inputs",))
    names = {"caption_model": "model", "caption_url": "url", "caption_key_env": "key_env"}
    names["captioner"] = "captioner"
    captions = {names[key]: content.pop(key) for key in names if key in content}
    from manifests.common import check
    from manifests.mine import MineOptions
    from pipelines.mine.job import run_mine

    content |= {"captions": captions} if captions else {}
    options = check(content, MineOptions, "layerflow mine")
    return run_mine(options, workers=workers, quiet=quiet, accept_lost=accept_lost)


def paste(
    foregrounds: PathLike | Sequence[PathLike],
    backgrounds: PathLike | Sequence[PathLike],
    out: PathLike,
    count: int,
    *,
    seed: int = 0,
    size: Size = "480x720",
    frames: int = 16,
    fps: float = 8.0,
    placement: str | None = None,
    shadow: str | None = None,
    gate: str | None = None,
    crf: int | None = None,
    min_psnr: float | None = None,
    deadline: float | None = None,
    licence: str | None = None,
    attribution: str | None = None,
    more: Mapping[str, Any] | None = None,
    workers: int | None = None,
    accept_lost: bool = False,
    quiet: bool = True,
) -> Summary:
    """Matted foregrounds over other backgrounds -> pasted clips, exact by construction.

    more: any other key of the manifest, such as ``{"objects": [1, 2]}``. Otherwise as ``mine``.
    """
    content = _manifest(locals(), many=("foregrounds", "backgrounds"))
    content |= content.pop("more", {})
    from manifests.common import check
    from manifests.paste import PasteOptions
    from pipelines.paste.job import run_paste

    options = check(content, PasteOptions, "layerflow paste")
    return run_paste(options, workers=workers, quiet=quiet, accept_lost=accept_lost)


def pack(
    inputs: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    layout: str = "auto",
    size: Size | None = None,
    seed: int = 0,
    frames: int | None = None,
    fps: float | None = None,
    fill: str | None = None,
    columns: Mapping[str, str] | None = None,
    prompts: PathLike | None = None,
    crf: int | None = None,
    min_psnr: float | None = None,
    deadline: float | None = None,
    licence: str | None = None,
    attribution: str | None = None,
    workers: int | None = None,
    accept_lost: bool = False,
    quiet: bool = True,
) -> Summary:
    """Layered stills -> image clips, layered films -> moving clips. Otherwise as ``mine``.

    columns: of a table, ``{"foreground": "rgba"}``.
    """
    content = _manifest(locals(), many=("inputs",))
    from manifests.common import check
    from manifests.pack import PackOptions
    from pipelines.pack.job import run_pack

    options = check(content, PackOptions, "layerflow pack")
    return run_pack(options, workers=workers, quiet=quiet, accept_lost=accept_lost)


def init(
    directory: PathLike,
    preset: str,
    *,
    base: PathLike | None = None,
    size: Size | None = None,
    frames: int | None = None,
    positions: str | None = None,
    seed: int | None = None,
) -> Path:
    """A model folder to start from. preset: tiny, cogvideox-2b or cogvideox-5b, of a ``base``, or
    one that an installed package adds."""
    from layerflow.model.presets import init_directory

    height, width = _size(size) or (None, None)
    return init_directory(
        Path(directory),
        preset,
        None if base is None else str(base),
        height=height,
        width=width,
        num_frames=frames,
        positions=positions,
        seed=seed,
    )


def encode(
    corpora: PathLike | Sequence[PathLike],
    model: PathLike,
    out: PathLike,
    *,
    size: Size | None = None,
    frames: int | None = None,
    flip: bool = False,
    reverse: bool = False,
    crops: int = 0,
    freeze: int = 0,
    dtype: str = "float32",
    workers: int | None = None,
    accept_lost: bool = False,
    quiet: bool = True,
) -> EncodeSummary:
    """Corpora -> latents and prompt embeddings in the folder ``out``; does only what is missing."""
    from pipelines.encode.clip_latents import Augment
    from pipelines.encode.job import run_encode

    return run_encode(
        [str(corpus) for corpus in _many(corpora)],
        model=str(model),
        out=str(out),
        size=_size(size),
        frames=frames,
        augment=Augment(flip=flip, reverse=reverse, crops=crops, freeze=freeze),
        dtype=dtype,
        workers=workers,
        quiet=quiet,
        accept_lost=accept_lost,
    )


def train(
    manifest: PathLike,
    *,
    out: PathLike | None = None,
    stage: str | None = None,
    workers: int | None = None,
    fresh: bool = False,
    quiet: bool = True,
) -> Path | None:
    """The schedule of a manifest; goes on where an earlier run stopped.

    Returns the run's folder, whose ``export`` is the pipeline; None when it was told to stop.
    """
    from manifests.train import load
    from trainer.distributed.launch import launch

    checked = load(Path(manifest), out=None if out is None else str(out), workers=workers)
    say = (lambda line: None) if quiet else (lambda line: print(line, flush=True))
    return Path(checked.out) if launch(checked, only=stage, fresh=fresh, log=say) else None


def sample(
    model: PathLike,
    out: PathLike,
    *,
    given: Mapping[str, PathLike] | None = None,
    prompt: Mapping[str, str] | None = None,
    negative_prompt: Mapping[str, str] | None = None,
    seed: int = 0,
    count: int = 1,
    id: str | None = None,
    size: Size | None = None,
    frames: int | None = None,
    fps: float | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    dynamic_cfg: bool = False,
    official_sampler: bool = False,
    exact_given: bool = False,
    png: bool = False,
    dtype: str | None = None,
    quiet: bool = True,
) -> list[Path]:
    """Sample layers into folders below ``out``, which are returned: all of them, or those that are
    not given. given: layer -> video or picture; prompt: layer -> text."""
    from layerflow.model.sample import SampleRequest, run_sample

    height, width = _size(size) or (None, None)
    request = SampleRequest(
        model=Path(model),
        out=Path(out),
        given={layer: Path(path) for layer, path in (given or {}).items()},
        prompt=prompt or {},
        negative_prompt=negative_prompt or {},
        seed=seed,
        count=count,
        id=id,
        height=height,
        width=width,
        num_frames=frames,
        fps=fps,
        steps=steps,
        guidance=guidance,
        dynamic_cfg=dynamic_cfg,
        official_sampler=official_sampler,
        exact_given=exact_given,
        png=png,
        dtype=dtype,
    )
    return run_sample(request, quiet=quiet)


def publish(
    corpus: PathLike,
    repo_id: str,
    *,
    dry_run: PathLike | None = None,
    private: bool = True,
    config: str = "default",
    split: str = "train",
    seed: int = 0,
    revision: str | None = None,
    licence: str | None = None,
    acknowledge_licences: bool = False,
    with_rejected: bool = False,
    workers: int | None = None,
    quiet: bool = True,
) -> list[str]:
    """A corpus to the Hugging Face Hub, or into the folder ``dry_run``; returns what was done."""
    from pipelines.publish.files import PublishOptions
    from pipelines.publish.job import run_publish

    options = PublishOptions(
        repo_id=repo_id,
        private=private,
        config=config,
        split=split,
        seed=seed,
        revision=revision,
        licence=licence,
        acknowledge_licences=acknowledge_licences,
        with_rejected=with_rejected,
    )
    folder = None if dry_run is None else Path(dry_run)
    return run_publish(Path(corpus), options, dry_run=folder, workers=workers, quiet=quiet)


def evaluate(
    corpus: PathLike,
    out: PathLike = "evaluation",
    *,
    model: PathLike | None = None,
    predictions: PathLike | None = None,
    task: Sequence[str] | None = None,
    count: int | None = None,
    seed: int = 0,
    batch: int = 4,
    size: Size | None = None,
    frames: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    clip: PathLike | None = None,
    aesthetic: PathLike | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Scores of a model's samples, or of ``predictions``, against the true layers of a corpus."""
    from layerflow.evaluation.run import EvaluateRequest, run_evaluate

    height, width = _size(size) or (None, None)
    request = EvaluateRequest(
        corpus=Path(corpus),
        out=Path(out),
        model=None if model is None else Path(model),
        predictions=None if predictions is None else Path(predictions),
        tasks=tuple(task or ("decompose",)),
        count=count,
        seed=seed,
        batch=batch,
        height=height,
        width=width,
        frames=frames,
        steps=steps,
        guidance=guidance,
        clip=None if clip is None else Path(clip),
        aesthetic=None if aesthetic is None else Path(aesthetic),
    )
    return run_evaluate(request, say=(lambda line: None) if quiet else print)


def _many(value: PathLike | Sequence[PathLike]) -> list[PathLike]:
    return [value] if isinstance(value, str | Path) else list(value)


def _size(size: Size | None) -> tuple[int, int] | None:
    if size is None or not isinstance(size, str):
        return size
    from manifests.common import parse_size

    return parse_size(size)


def _manifest(arguments: dict[str, Any], *, many: tuple[str, ...]) -> dict[str, Any]:
    """Arguments as keys of a manifest: no run-time ones, none that was left out."""
    content = {k: v for k, v in arguments.items() if k not in RUNTIME and v is not None}
    for key, value in content.items():
        if key in many:
            content[key] = [str(item) for item in _many(value)]
        elif isinstance(value, Path):
            content[key] = str(value)
    if isinstance(content.get("size"), tuple):
        content["size"] = "x".join(map(str, content["size"]))
    return content
