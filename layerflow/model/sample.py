"""Sampling to files: what ``layerflow sample`` does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from layerflow.clip import U8, resize_cover
from layerflow.layer_set import model_layers, prompted_of
from layerflow.media.cells import MediaError
from layerflow.media.contact_sheet import save_sheet
from layerflow.media.decode import Decoder
from layerflow.media.pictures import read_picture
from layerflow.media.sample_files import write_layers
from layerflow.model.info import sampling_settings
from layerflow.outputs import local_output

STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class SampleRequest:
    """One call of ``layerflow sample``; None means the model's own value.

    given: layer -> video or picture file. prompt, negative_prompt: layer -> text.
    height, width: pixels. num_frames: of one layer. count samples use the seeds from ``seed`` on.
    foregrounds: how many there are, of a model with several. offload: on a GPU, of text encoder,
    network and autoencoder only the one that runs is there. tiling: decode and encode in tiles.
    """

    model: Path
    out: Path
    given: Mapping[str, Path] = field(default_factory=dict)
    prompt: Mapping[str, str] = field(default_factory=dict)
    negative_prompt: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    count: int = 1
    id: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    steps: int | None = None
    guidance: float | None = None
    dynamic_cfg: bool = False
    official_sampler: bool = False
    exact_given: bool = False
    png: bool = False
    dtype: str | None = None
    foregrounds: int | None = None
    offload: bool = True
    tiling: bool = False


def run_sample(request: SampleRequest, *, quiet: bool = False) -> list[Path]:
    """Sample and write ``OUT/<id>/`` for each sample, and ``OUT/contact.png`` of all.

    Returns the folders. ValueError for a request that the model cannot do; nothing is written then.
    """
    import torch

    if request.id is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", request.id):
        raise ValueError(f"id {request.id!r} may hold letters, digits, '.', '-' and '_' only")
    local_output(request.out)
    pipe = load_pipeline(
        request.model, request.dtype, offload=request.offload, tiling=request.tiling
    )
    pipe.set_progress_bar_config(disable=quiet or None)  # None: a bar on terminals only
    known = model_layers(request.model)
    present = known.with_foregrounds(request.foregrounds or len(known.foregrounds))
    check_prompts(request, prompted_of(present))
    layers, fps = _read_layers(request, pipe, present)
    some = {"foregrounds": request.foregrounds} if len(known.foregrounds) > 1 else {}
    steps, guidance = sampling_settings(request.model, request.steps, request.guidance)
    seeds = range(request.seed, request.seed + request.count)
    folders, clips = [], []
    for seed in seeds:
        output = pipe(
            prompt=dict(request.prompt),
            negative_prompt=dict(request.negative_prompt),
            given=layers,
            height=request.height,
            width=request.width,
            num_frames=request.num_frames,
            num_inference_steps=steps,
            guidance_scale=guidance,
            use_dynamic_cfg=request.dynamic_cfg,
            generator=torch.Generator().manual_seed(seed),
            output_type="uint8",
            exact_given=request.exact_given,
            official_sampler=request.official_sampler,
            **some,
        )
        name = request.id or f"seed-{request.seed}"
        if request.count > 1:
            name = f"{request.id or 'seed'}-{seed}"
        result = output.sample(0)
        about = _about(request, seed, steps, guidance)
        folder = request.out / name
        clips.append(write_layers(folder, result, request.prompt, fps, about, png=request.png))
        folders.append(folder)
    labels = [f"{folder.name}   {dict(request.prompt) or ''}" for folder in folders]
    save_sheet(request.out / "contact.png", clips, labels)
    return folders


def load_pipeline(
    model: Path, dtype: str | None = None, *, offload: bool = True, tiling: bool = False
) -> Any:
    """The pipeline of a model folder, on the GPU if there is one (then bfloat16 by default).

    offload, tiling: as of ``SampleRequest``.
    """
    import torch

    from layerflow.model.autoencoder import enable_tiling
    from layerflow.model.base import base_of
    from layerflow.model.presets import torch_dtype

    if not (model / "model_index.json").is_file():
        raise ValueError(f"{model} is no model folder (no model_index.json); see layerflow init")
    gpu = torch.cuda.is_available()
    kind = torch_dtype(dtype or ("bfloat16" if gpu else "float32"))
    pipe = base_of(model).pipeline.from_pretrained(model, dtype=kind)
    if tiling:
        enable_tiling(pipe.vae)
    if gpu and offload:
        pipe.enable_model_cpu_offload()
    return pipe.to("cuda") if gpu and not offload else pipe


def _about(request: SampleRequest, seed: int, steps: int, guidance: float) -> dict[str, Any]:
    said = asdict(request) | {"seed": seed, "steps": steps, "guidance": guidance}
    for name in ("out", "count", "png", "offload"):
        del said[name]
    said["model"] = request.model.name
    said["given"] = {layer: path.name for layer, path in request.given.items()}
    return said


def check_prompts(request: SampleRequest, prompted: Sequence[str]) -> None:
    """ValueError for a prompt of a layer that is none of those with one."""
    for layer in (*request.prompt, *request.negative_prompt):
        if layer not in prompted:
            raise ValueError(
                f"{layer!r} has no prompt; the layers with prompts are {', '.join(prompted)}"
            )


def _read_layers(
    request: SampleRequest, pipe: Any, known: Sequence[str]
) -> tuple[dict[str, U8], float]:
    """Given files at the size and length of the request, and the frame rate."""
    if not request.given:
        return {}, request.fps or 8.0
    height, width, count = pipe.default_size(request.height, request.width, request.num_frames)
    layers, rate = {}, None
    for layer, path in request.given.items():
        if layer not in known:
            raise ValueError(f"--given names {layer!r}; the layers are {', '.join(known)}")
        frames, own = read_file(path)
        if len(frames) == 1:
            frames = np.repeat(frames, count, axis=0)
        if len(frames) < count:
            raise ValueError(f"{path} has {len(frames)} frames, the model needs {count}")
        layers[layer] = _fit(frames[:count], height, width)
        rate = rate or own
    return layers, request.fps or rate or 8.0


def read_file(path: Path) -> tuple[U8, float | None]:
    """A picture (one frame) or video, untrusted: uint8 ``[T, H, W, 1, 3 or 4]`` and its rate."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix.lower() in STILLS:
            return read_picture(path.resolve())[None], None
        with Decoder() as decoder:
            return decoder.read_frames(path.resolve())
    except MediaError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def _fit(frames: U8, height: int, width: int) -> U8:
    """Scale to cover and crop; colour under alpha is premultiplied meanwhile."""
    if frames.shape[1:3] == (height, width) or frames.shape[-1] != 4:
        return resize_cover(frames, height, width)
    cover = frames[..., 3:].astype(np.float32) / 255
    ink = resize_cover(frames[..., :3] * cover, height, width)
    soft = resize_cover(cover[..., 0], height, width)
    colour = ink / np.maximum(soft, 1e-3)[..., None]
    rgba = np.concatenate([colour, soft[..., None] * 255], -1)
    return cv2.convertScaleAbs(rgba.reshape(-1)).reshape(rgba.shape)
