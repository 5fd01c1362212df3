"""A tiny model, latents and manifests that the trainer's tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXDDIMScheduler

from layerflow.corpus.latents import FORMAT_VERSION, LatentsWriter, clip_row, prompt_key, prompt_row
from layerflow.layer_set import layer_set
from layerflow.model.autoencoder import BlockDCTAutoencoder
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from manifests.train import TrainManifest, parse

CHANNELS, TOKENS, TEXT_WIDTH = 4, 2, 8


def make_model(
    folder: Path,
    *,
    layers: int = 2,
    channels: int = CHANNELS,
    seed: int = 0,
    of: str = "rgba",
) -> Path:
    """A pipeline directory as far as the trainer needs one: transformer, scheduler, autoencoder.

    layers: blocks of the network. of: its set of layers.
    """
    prompts = len(layer_set(of).prompted)
    torch.manual_seed(seed)
    transformer = LayerFlowTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=channels,
        time_embed_dim=16,
        text_embed_dim=TEXT_WIDTH,
        num_layers=layers,
        sample_width=2,
        sample_height=2,
        sample_frames=8,
        patch_size=1,
        temporal_compression_ratio=1,
        max_text_seq_length=prompts * TOKENS,
        num_prompts=prompts,
        layers=of,
        num_text_tokens=TOKENS,
        latent_frames=2,
    )
    for name, parameter in transformer.named_parameters():
        if "proj_out" in name or "norm" in name:  # a zero start would hide mistakes
            torch.nn.init.normal_(parameter, std=0.3)
    transformer.save_pretrained(folder / "transformer")
    CogVideoXDDIMScheduler(
        prediction_type="v_prediction", snr_shift_scale=3.0, rescale_betas_zero_snr=True
    ).save_pretrained(folder / "scheduler")
    BlockDCTAutoencoder(block_size=8, luma_bands=2, chroma_bands=1).save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text('{"_class_name": "LayerFlowPipeline"}\n')
    return folder


def make_latents(
    folder: Path,
    *,
    count: int = 12,
    kind: str = "pasted",
    frames: int = 2,
    size: int = 2,
    posterior: bool = True,
    unknown: float | None = None,
    seed: int = 0,
    channels: int = CHANNELS,
    text: tuple[int, int] = (TOKENS, TEXT_WIDTH),
    layers: str = "rgba",
    shapes: Sequence[tuple[int, int, int]] = (),
) -> Path:
    """`count` clips of random latents with distinct prompts. unknown: of each a share that is not
    known, and of the first one all. text: tokens and width of one. layers: their set, of which the
    first clip has one foreground, the next two, and so on. shapes: instead of frames and size,
    latent frames, height and width of the first clip, the next, and so on, over and over."""
    rng, chance = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    own = layer_set(layers)
    slots = len(own.prompted)
    texts = [f"{slot}, {kind} {i}" for i in range(count) for slot in range(slots)]

    def shape_of(i: int) -> tuple[int, int, int]:
        return shapes[i % len(shapes)] if shapes else (frames, size, size)

    def moments(i: int) -> np.ndarray:
        shape = (channels, *shape_of(i))
        logvar = np.full(shape, -2.0 if posterior else -30.0)
        return np.concatenate([rng.standard_normal(shape), logvar]).astype(np.float32)

    def known(i: int, count: int) -> np.ndarray:
        shape = (count, *shape_of(i))
        least = 1.0 if i == 0 else unknown
        return (chance.random(shape) >= least).astype(np.uint8)

    def clips() -> Any:
        for i in range(count):
            present = own.with_foregrounds(1 + i % len(own.foregrounds))
            keys = {
                f"{p}_prompt": prompt_key(texts[slots * i + s]) if p in present else ""
                for s, p in enumerate(own.prompted)
            }
            yield clip_row(
                {layer: moments(i) for layer in present},
                layers=own,
                id=f"{kind}{i:04d}",
                source=f"{kind}{i:04d}",
                content=f"{seed}-{i}",
                kind=kind,
                alpha_kind="soft" if kind == "image" else "binary",
                origin_group=str(i // 2),
                num_frames=shape_of(i)[0],
                height=8 * shape_of(i)[1],
                width=8 * shape_of(i)[2],
                fps=8.0,
                known=None if unknown is None else known(i, len(present)),
                **keys,
            )

    about: dict[str, Any] = {"format_version": FORMAT_VERSION}
    if layers != "rgba":
        about["layers"] = layers
    with LatentsWriter(folder, about) as writer:
        writer.clips(clips())
        writer.prompts(prompt_row(prompt, rng.standard_normal(text)) for prompt in texts)
    return folder


def make_manifest(folder: Path, **changes: Any) -> TrainManifest:
    """Three short stages over `folder`/model, /video and /stills, which are made when absent."""
    if not (folder / "model").exists():
        make_model(folder / "model")
        make_latents(folder / "video", count=10)
        make_latents(folder / "stills", count=6, kind="image", frames=1, seed=1)
    document = {
        "model": str(folder / "model"),
        "out": str(folder / "out"),
        "seed": 7,
        "batch": 4,
        "latents": {"video": str(folder / "video"), "stills": str(folder / "stills")},
        "log_every": 2,
        "save_every": 3,
        "tensorboard": False,
        "prefetch": 0,
        "threads": 1,  # bit-equality holds for equal numbers of threads
        "stages": [
            {
                "name": "base",
                "steps": 5,
                "lr": 2e-3,
                "ema": 0.9,
                "schedule": {"warmup": 2, "decay": "power", "power": 0.7},
                "trains": "full",
                "mixture": [{"latents": "video"}],
                "tasks": {"generate": 0.5, "decompose": 0.3, "fg2bg": 0.2},
            },
            {
                "name": "motion",
                "steps": 4,
                "lr": 5e-3,
                "trains": {"lora": "motion", "rank": 2},
                "mixture": [{"latents": "video", "freeze": True, "motion_gate": 1}],
            },
            {
                "name": "content",
                "steps": 4,
                "lr": 5e-3,
                "trains": {"lora": "content", "rank": 2, "blocks": [1]},
                "mixture": [
                    {"latents": "stills", "weight": 3, "motion_gate": 1},
                    {"latents": "video", "motion_gate": 0},
                ],
            },
        ],
    }
    return parse(document | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of an exported pipeline's transformer, adapters included."""
    from safetensors.torch import load_file

    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted((folder / "transformer").rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal bit by bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class Killed(BaseException):
    """Ends a run from inside, where a kill would."""


def kill_at(step: int) -> Callable[[dict[str, Any]], None]:
    """A `report` for `loop.train` that ends the run at the first checkpoint from this step on."""

    def report(row: dict[str, Any]) -> None:
        if row["step"] >= step:
            raise Killed

    return report


def whole_and_killed(manifest: TrainManifest, folder: Path, *steps: int) -> tuple[Path, Path]:
    """Train once without a break, into `folder / "whole"`, and once killed at each of the steps and
    continued, into the manifest's own folder. Returns both folders, whole first."""
    from trainer import loop

    def train(of: TrainManifest, **more: Any) -> bool:
        return loop.train(of, of.out, log=lambda line: None, **more)

    for step in steps:
        try:
            train(manifest, report=kill_at(step))
        except Killed:
            continue
        raise AssertionError(f"step {step} was never saved")
    assert train(manifest)
    unbroken = manifest.model_copy(update={"out": str(folder / "whole")})
    assert train(unbroken)
    return folder / "whole", Path(manifest.out)
