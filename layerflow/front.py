"""The front door for Python: every command as a function with the command's options.

Each does what the command of its name does, and returns what was made instead of printing it. The
text beside a parameter's type is also the command's help. All heavy imports happen inside the
functions, those of the jobs and of the trainer too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from layerflow.cli.arguments import Size, manifest, many, request_of, size_of
from layerflow.corpus.log import at_version

if TYPE_CHECKING:
    from manifests.mine import MineOptions
    from manifests.pack import PackOptions
    from manifests.paste import PasteOptions
    from pipelines.encode.job import EncodeSummary
    from pipelines.engine.jobs import Summary

PathLike = str | Path
PathLikes = PathLike | Sequence[PathLike]
CorpusOut = Annotated[PathLike, "corpus folder to make"]
ClipSize = Annotated[Size, "HEIGHTxWIDTH, such as 480x720"]
ClipFrames = Annotated[int, "frames of a clip"]
ClipFps = Annotated[float, "frames a second of a clip"]
Prompts = Annotated[PathLike | None, "CSV, JSONL or Parquet of prompts"]
Crf = Annotated[int | None, "H.264 quality of colour layers, default 10"]
MinPsnr = Annotated[float | None, "dB below which a clip is encoded again, finer"]
Deadline = Annotated[float | None, "seconds that decoding a source may take"]
Licence = Annotated[str | None, "licence of the inputs"]
Attribution = Annotated[str | None, "whom to name"]
WORKERS = "tasks at a time; default: all CPUs; 0: no Ray, this process"
Workers = Annotated[int | None, WORKERS]
Append = Annotated[bool, "add to the corpus that is there what it does not hold yet"]
Version = Annotated[int | None, "version of the corpus; default: the newest"]
AcceptLost = Annotated[bool, "go on if most units fail alike: each becomes a rejected row"]
ModelSize = Annotated[Size | None, "HEIGHTxWIDTH; default: the model's"]
ModelFrames = Annotated[int | None, "default: the model's"]
Steps = Annotated[int | None, "default: the model's, or 50"]
Guidance = Annotated[float | None, "default: the model's, or 6"]
Quiet = Annotated[bool, "no progress bar"]


def mine(
    inputs: Annotated[PathLikes, "video files and folders"],
    out: CorpusOut,
    size: ClipSize = "480x720",
    *,
    frames: ClipFrames = 16,
    fps: ClipFps = 8.0,
    matting: Annotated[str, "backend: {layerflow.matting}"] = "auto",
    weights: Annotated[PathLike | None, "the backend's weights, a path"] = None,
    gate: Annotated[str, "quality gate: off, loose, coarse, standard, strict"] = "standard",
    device: Annotated[str, "cpu or cuda: of backend, refiner, inpainter"] = "cpu",
    refine: Annotated[str | None, "refines the matte's edge: {layerflow.refiners}"] = None,
    refine_weights: Annotated[PathLike | None, "the refiner's weights, a path"] = None,
    inpaint: Annotated[str, "fills unseen background: {layerflow.inpainters}"] = "opencv",
    inpaint_weights: Annotated[PathLike | None, "the inpainter's weights, a path"] = None,
    prompts: Prompts = None,
    box: Annotated[str | None, "subject by hand: inside X0,Y0,X1,Y1, shares of the picture"] = None,
    points: Annotated[str | None, "at X,Y[;X,Y...], shares; X,Y,0: not there"] = None,
    at: Annotated[float | None, "seconds at which these hold; default: as a shot begins"] = None,
    subjects: Annotated[str, "one, or each: a clip for each clear subject"] = "one",
    caption_model: Annotated[
        str | None, "vision-language model: a folder, or its name at the url"
    ] = None,
    captioner: Annotated[str | None, "{layerflow.captioners}; default: by the url"] = None,
    caption_url: Annotated[str | None, "OpenAI-compatible endpoint, http(s)://.../v1"] = None,
    caption_key_env: Annotated[str | None, "environment variable with the endpoint's key"] = None,
    licence: Licence = None,
    attribution: Attribution = None,
    against: Annotated[PathLikes | None, "corpora whose clips are not to be repeated"] = None,
    append: Append = False,
    workers: Workers = None,
    accept_lost: AcceptLost = False,
    quiet: Quiet = True,
) -> Summary:
    """Real video -> mined clips in the corpus ``out``: matte, foreground, background, scores.

    Raises ValueError for a request that cannot work.
    """
    content = manifest(locals())
    from manifests.mine import of_command

    options = of_command(content)
    return run_job(options, append=append, workers=workers, quiet=quiet, accept_lost=accept_lost)


def paste(
    foregrounds: Annotated[PathLikes, "corpus or folder; may be repeated"],
    backgrounds: Annotated[PathLikes, "corpus or folder; may be repeated"],
    out: CorpusOut,
    count: Annotated[int, "clips to make"],
    *,
    seed: Annotated[int, "every draw follows from it"] = 0,
    size: ClipSize = "480x720",
    frames: ClipFrames = 16,
    fps: ClipFps = 8.0,
    placement: Annotated[str | None, "where it stands: auto, ground, source, free"] = None,
    shadow: Annotated[str | None, "who owns the contact shadow: none, background"] = None,
    gate: Annotated[str | None, "quality gate on foregrounds of mined corpora"] = None,
    crf: Crf = None,
    min_psnr: MinPsnr = None,
    deadline: Deadline = None,
    licence: Licence = None,
    attribution: Attribution = None,
    more: Annotated[
        Mapping[str, Any] | None, "any other key of the manifest: objects=1,2 shutter=0"
    ] = None,
    append: Append = False,
    workers: Workers = None,
    accept_lost: AcceptLost = False,
    quiet: Quiet = True,
) -> Summary:
    """Matted foregrounds over other backgrounds -> pasted clips, exact by construction.

    more: any other key of the manifest, such as ``{"objects": [1, 2]}``. Errors as of ``mine``.
    """
    content = manifest(locals())
    content |= content.pop("more", {})
    from manifests.common import check
    from manifests.paste import PasteOptions

    options = check(content, PasteOptions, "layerflow paste")
    return run_job(options, append=append, workers=workers, quiet=quiet, accept_lost=accept_lost)


def pack(
    inputs: Annotated[PathLikes, "folders of layered stills"],
    out: CorpusOut,
    *,
    layout: Annotated[str, "{layerflow.importers}"] = "auto",
    size: Annotated[Size | None, "HEIGHTxWIDTH; default: as is"] = None,
    seed: Annotated[int, "draws of backgrounds follow from it"] = 0,
    frames: Annotated[int | None, "frames of a clip of a layered video"] = None,
    fps: Annotated[float | None, "rate of clips of layered videos"] = None,
    fill: Annotated[str | None, "background of a still without one: blurred, plain"] = None,
    columns: Annotated[
        Mapping[str, str] | None,
        "a table's column: foreground=rgba (or alpha, background, blended, ...)",
    ] = None,
    prompts: Prompts = None,
    crf: Crf = None,
    min_psnr: MinPsnr = None,
    deadline: Deadline = None,
    licence: Licence = None,
    attribution: Attribution = None,
    append: Append = False,
    workers: Workers = None,
    accept_lost: AcceptLost = False,
    quiet: Quiet = True,
) -> Summary:
    """Layered stills -> image clips, layered videos -> moving clips. Errors as of ``mine``.

    columns: of a table, ``{"foreground": "rgba"}``.
    """
    content = manifest(locals())
    from manifests.common import check
    from manifests.pack import PackOptions

    options = check(content, PackOptions, "layerflow pack")
    return run_job(options, append=append, workers=workers, quiet=quiet, accept_lost=accept_lost)


def init(
    directory: Annotated[PathLike, "folder to make"],
    preset: Annotated[str | None, "{layerflow.bases}"] = None,
    *,
    base: Annotated[PathLike | None, "model folder or Hub id that the preset starts from"] = None,
    source: Annotated[
        PathLike | None, "instead of a preset: a model or run, with other layers"
    ] = None,
    layers: Annotated[str | None, "rgb, rgba, rgbax2 to rgbax8; or rgba+effects"] = None,
    size: Annotated[Size | None, "HEIGHTxWIDTH, such as 480x720"] = None,
    frames: Annotated[int | None, "frames of one layer"] = None,
    positions: Annotated[str | None, "shared or continuous"] = None,
    shift: Annotated[float | None, "flow matching: towards noise (1: not at all)"] = None,
    density: Annotated[str | None, "flow matching: uniform or logit-normal times"] = None,
    expert: Annotated[str | None, "of Wan 2.2 A14B: high or low noise"] = None,
    seed: Annotated[int | None, "of everything random in it"] = None,
) -> Path:
    """A model folder to start from. preset: built in (tiny, ...) or of an installed package."""
    from layerflow.model.presets import init_directory

    height, width = size_of(size) or (None, None)
    return init_directory(
        Path(directory),
        preset,
        None if base is None else str(base),
        None if source is None else str(source),
        layers=layers,
        height=height,
        width=width,
        num_frames=frames,
        positions=positions,
        shift=shift,
        density=density,
        expert=expert,
        seed=seed,
    )


def encode(
    corpora: Annotated[PathLikes, "corpus folders, or hf://datasets/NAMESPACE/NAME"],
    model: Annotated[PathLike, "model folder, made by init"],
    out: Annotated[PathLike, "latents folder to make or bring up to date"],
    *,
    size: Annotated[Size | None, "HEIGHTxWIDTH to encode at; default: as the clips are"] = None,
    frames: Annotated[int | None, "frames to take of each clip, evenly; default: all"] = None,
    buckets: Annotated[str | None, "instead of both: HxWxF,HxWxF,...; the clip chooses"] = None,
    flip: Annotated[bool, "also each clip mirrored"] = False,
    reverse: Annotated[bool, "also each clip backwards"] = False,
    crops: Annotated[int, "also this many windows of each clip"] = 0,
    freeze: Annotated[int, "instead of moving clips: this many frames of each, as stills"] = 0,
    layers: Annotated[str | None, "rgb, rgba, rgbax2 .., +effects; default: the model's"] = None,
    dtype: Annotated[str, "of the files: float32 or float16"] = "float32",
    precision: Annotated[str, "to compute in: float32, bfloat16, float16"] = "float32",
    tiling: Annotated[bool, "pass the autoencoder tile by tile"] = False,
    paste: Annotated[PathLike | None, "no corpus: draw the clips of this manifest's paste"] = None,
    count: Annotated[int | None, "with --paste: clips to draw; default: the manifest's"] = None,
    seed: Annotated[int | None, "with --paste: of the draws; default: the manifest's"] = None,
    workers: Workers = None,
    accept_lost: Annotated[bool, "go on if most units fail alike: reject their clips"] = False,
    quiet: Quiet = True,
) -> EncodeSummary:
    """Corpora -> latents and prompt embeddings in the folder ``out``; does only what is missing.

    paste: a corpus manifest with one paste job, and no corpora: its clips are drawn and encoded
    without being stored.
    """
    from pipelines.encode.clip_latents import Augment
    from pipelines.encode.drawn import run_encode_of

    return run_encode_of(
        many(corpora),
        paste,
        {"count": count, "seed": seed},
        model=str(model),
        out=str(out),
        size=size_of(size),
        frames=frames,
        buckets=buckets,
        augment=Augment(flip=flip, reverse=reverse, crops=crops, freeze=freeze),
        layers=layers,
        dtype=dtype,
        compute=(precision, tiling),
        workers=workers,
        quiet=quiet,
        accept_lost=accept_lost,
    )


def train(
    manifest: Annotated[PathLike, "a train manifest (YAML)"],
    *,
    out: Annotated[PathLike | None, "run folder; default: the manifest's"] = None,
    stage: Annotated[str | None, "train this stage only"] = None,
    workers: Annotated[int | None, "1: this process; more: through Ray Train"] = None,
    fresh: Annotated[bool, "start over; default: go on"] = False,
    new_data: Annotated[bool, "go on although the last stage's data have changed"] = False,
    quiet: Annotated[bool, "no lines while training"] = True,
) -> Path | str | None:
    """The schedule of a manifest; goes on where an earlier run stopped. Returns the run's folder
    or URL, whose ``export`` is the pipeline; None when it was told to stop."""
    from layerflow.outputs import corpus_output
    from manifests.train import load
    from trainer.distributed.launch import launch

    checked = load(Path(manifest), out=None if out is None else str(out), workers=workers)
    say = (lambda line: None) if quiet else (lambda line: print(line, flush=True))
    done = launch(checked, only=stage, fresh=fresh, new_data=new_data, log=say)
    return corpus_output(checked.out) if done else None


def sample(
    model: Annotated[PathLike, "model folder"],
    out: Annotated[PathLike, "folder for the results"],
    *,
    given: Annotated[Mapping[str, PathLike] | None, "LAYER=FILE, video or picture"] = None,
    prompt: Annotated[Mapping[str, str] | None, "LAYER=TEXT, such as foreground.2=dog"] = None,
    negative_prompt: Annotated[Mapping[str, str] | None, "LAYER=TEXT"] = None,
    seed: Annotated[int, "of the first sample; then one more each"] = 0,
    count: Annotated[int, "samples to make"] = 1,
    id: Annotated[str | None, "name of the result; default: seed-S"] = None,
    size: ModelSize = None,
    frames: ModelFrames = None,
    fps: Annotated[float | None, "default: the given file's, or 8"] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    dynamic_cfg: Annotated[bool, "vary the guidance as released"] = False,
    official_sampler: Annotated[bool, "the released sampler"] = False,
    exact_given: Annotated[bool, "copy given layers instead of decoding their latents"] = False,
    png: Annotated[bool, "also write every frame as PNG"] = False,
    foregrounds: Annotated[int | None, "how many there are; default: all of the model's"] = None,
    dtype: Annotated[str | None, "float32, bfloat16 or float16"] = None,
    offload: Annotated[bool, "of the model, only the part that runs is on the GPU"] = True,
    tiling: Annotated[bool, "decode tile by tile"] = False,
    quiet: Quiet = True,
) -> list[Path]:
    """Sample layers into folders below ``out``, which it returns: those not given, or all."""
    arguments = locals()
    from layerflow.model.sample import SampleRequest, run_sample

    request = request_of(
        SampleRequest,
        arguments,
        given={layer: Path(path) for layer, path in (given or {}).items()},
        prompt=prompt or {},
        negative_prompt=negative_prompt or {},
        num_frames=frames,
    )
    return run_sample(request, quiet=quiet)


def publish(
    corpus: Annotated[PathLike, "a corpus folder, or one in an object store"],
    repo_id: Annotated[str, "NAMESPACE/NAME on the Hub"],
    *,
    version: Version = None,
    dry_run: Annotated[PathLike | None, "write the repository here, upload nothing"] = None,
    private: Annotated[bool, "who may see it"] = True,
    config: Annotated[str, "name of the configuration"] = "default",
    split: Annotated[str, "one name, or shares such as train=0.9,test=0.1"] = "train",
    seed: Annotated[int, "the draw of the splits follows from it"] = 0,
    revision: Annotated[str | None, "branch to commit to"] = None,
    tag: Annotated[str | None, "name of this version; default: the next vN"] = None,
    licence: Annotated[str | None, "licence of the whole repository, for its card"] = None,
    acknowledge_licences: Annotated[bool, "clips may forbid redistribution (if private)"] = False,
    with_rejected: Annotated[bool, "also publish the rejected table"] = False,
    purge_history: Annotated[bool, "the Hub keeps this version alone; no way back"] = False,
    push_space: Annotated[bool, "also the page of `view`, as a static Space of that name"] = False,
    work: Annotated[PathLike | None, "folder of all nodes, or s3://, for what tasks did"] = None,
    workers: Annotated[int | None, "for previews; default: all CPUs; 0: this process"] = None,
    quiet: Quiet = True,
) -> list[str]:
    """A corpus to the Hugging Face Hub, or into the folder ``dry_run``; returns what was done."""
    arguments = locals()
    from pipelines.publish.files import PublishOptions
    from pipelines.publish.job import run_publish

    options = request_of(PublishOptions, arguments)
    folder = None if dry_run is None else Path(dry_run)
    where = at_version(corpus, version)
    how: dict[str, Any] = {"workers": workers, "purge_history": purge_history, "quiet": quiet}
    how |= {"shared": work, "space": push_space}
    return run_publish(where, options, dry_run=folder, **how)


def evaluate(
    corpus: Annotated[PathLike, "corpus with the true layers"],
    out: Annotated[PathLike, "folder for tables, figures and pictures"] = Path("evaluation"),
    *,
    model: Annotated[PathLike | None, "model folder to sample from"] = None,
    predictions: Annotated[
        PathLike | None, "instead: DIR/<id>/ as sample writes them, or a corpus"
    ] = None,
    task: Annotated[
        Sequence[str] | None, "generate, decompose, fg2bg, bg2fg or LAYER+LAYER; repeatable"
    ] = None,
    version: Version = None,
    count: Annotated[int | None, "clips at most; default: all"] = None,
    seed: Annotated[int, "of the first clip; then one more each"] = 0,
    batch: Annotated[int, "clips sampled at a time"] = 4,
    size: ModelSize = None,
    frames: ModelFrames = None,
    steps: Steps = None,
    guidance: Guidance = None,
    clip: Annotated[PathLike | None, "folder of a CLIP model: consistency, text"] = None,
    aesthetic: Annotated[PathLike | None, "safetensors file of a linear head on --clip"] = None,
    quiet: Annotated[bool, "no line for each clip"] = True,
) -> dict[str, Any]:
    """Scores of a model's samples, or of ``predictions``, against the true layers of a corpus."""
    arguments = locals()
    from layerflow.evaluation.run import EvaluateRequest, run_evaluate

    arguments["corpus"] = at_version(corpus, version)
    request = request_of(EvaluateRequest, arguments, tasks=tuple(task or ("decompose",)))
    return run_evaluate(request, say=(lambda line: None) if quiet else print)


def run_job(options: MineOptions | PasteOptions | PackOptions, **how: Any) -> Summary:
    """Run one corpus job. how: values of ``RUNTIME``."""
    from manifests.mine import MineOptions
    from manifests.paste import PasteOptions

    if isinstance(options, MineOptions):
        from pipelines.mine.job import run_mine

        return run_mine(options, **how)
    if isinstance(options, PasteOptions):
        from pipelines.paste.job import run_paste

        return run_paste(options, **how)
    from pipelines.pack.job import run_pack

    return run_pack(options, **how)
