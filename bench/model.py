"""Cost of our transformers against diffusers' bare ones at equal tokens.

    python bench/model.py [--base cogvideox wan] [--repeats 9] [--gpu]

One step is a forward and a backward pass. The two networks take turns, so that a busy machine
disturbs both alike; the figure is the median of the paired ratios. On a CPU it is CPU time of one
thread, on a GPU wall time between synchronisations, per attention backend. Wan is also compared
with diffusers' path of one timestep a token, in time, and in bytes that live at once in a step of
one block at 480x832 (counted on tensors without contents).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from layerflow.model import adapters
from layerflow.model.cogvideox.presets import TINY, tiny_transformer
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.wan import presets as wan
from layerflow.model.wan.transformer import LayerFlowWanTransformer3DModel
from trainer.planning.count import Live


@dataclass(frozen=True)
class Scale:
    """A size to measure at. height, width: of the latents; frames: latent frames of all layers."""

    name: str
    batch: int
    frames: int
    channels: int
    height: int
    width: int
    text_tokens: int
    config: dict[str, Any]
    base: str = "cogvideox"


def wan_scales(gpu: bool) -> list[Scale]:
    tiny = wan.tiny_transformer(wan.TINY, channels=27).config
    names = ("num_attention_heads", "attention_head_dim", "freq_dim", "text_dim", "ffn_dim")
    small = {name: tiny[name] for name in (*names, "patch_size", "num_layers")}
    width = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
    found = [
        Scale("tiny Wan", 8, 16, 27, 4, 4, 48, small, "wan"),
        Scale("1.3B width, one block", 1, 16, 16, 8, 12, 48, {**width, "num_layers": 1}, "wan"),
    ]
    if gpu:
        whole = {**width, "num_layers": 30}
        found.append(Scale("Wan 1.3B", 1, 20, 16, 60, 104, 1536, whole, "wan"))
    return found


def scales(gpu: bool) -> list[Scale]:
    tiny = tiny_transformer(TINY, channels=27).config
    width_2b = {
        "num_attention_heads": 30,
        "attention_head_dim": 64,
        "time_embed_dim": 512,
        "text_embed_dim": 4096,
        "patch_size": 2,
    }
    names = ("num_attention_heads", "attention_head_dim", "time_embed_dim", "text_embed_dim")
    small = {name: tiny[name] for name in (*names, "patch_size", "num_layers")}
    found = [
        Scale("tiny", 8, 16, 27, 4, 4, 48, small),
        Scale("2B width, one block", 1, 16, 16, 8, 12, 48, {**width_2b, "num_layers": 1}),
    ]
    if gpu:
        found.append(Scale("2B", 1, 16, 16, 60, 90, 678, {**width_2b, "num_layers": 30}))
    return found


def networks(scale: Scale) -> tuple[Any, Any]:
    """diffusers' network and ours, with the same number of tokens and of shared parameters."""
    from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel

    both = {**scale.config, "in_channels": scale.channels, "out_channels": scale.channels}
    if scale.base == "wan":
        tokens = scale.text_tokens // 3
        return WanTransformer3DModel(**both), LayerFlowWanTransformer3DModel(
            **both, num_text_tokens=tokens, latent_frames=scale.frames // 4
        )
    common = {
        **both,
        "sample_height": scale.height,
        "sample_width": scale.width,
        "sample_frames": (scale.frames - 1) * 4 + 1,
        "max_text_seq_length": scale.text_tokens,
    }
    stock = CogVideoXTransformer3DModel(**common)
    ours = LayerFlowTransformer3DModel(
        **common, num_text_tokens=scale.text_tokens // 3, latent_frames=scale.frames // 4
    )
    return stock, ours


def steps(
    scale: Scale, device: str, dtype: torch.dtype, adapted_too: bool = True
) -> dict[str, Callable[[], None]]:
    """A step of each variant: stock, ours, ours with both adapters and a motion gate; of Wan also
    stock with one timestep a token, which is how it could say that layers are given."""
    stock, ours = networks(scale)
    if adapted_too:
        _, adapted = networks(scale)
        for name, rank in (("motion", 8), ("content", 64)):
            adapters.add_adapter(adapted, name, rank=rank, alpha=1)
        adapters.set_trainable(adapted, adapters.adapter_parameters(adapted, "content"))
    shape = (scale.batch, scale.frames, scale.channels, scale.height, scale.width)
    latents = torch.randn(shape, device=device, dtype=dtype)
    width = scale.config.get("text_embed_dim") or scale.config.get("text_dim", 4096)
    text = torch.randn(scale.batch, scale.text_tokens, width, device=device, dtype=dtype)
    timestep = torch.full((scale.batch,), 500, device=device)
    given = torch.zeros(scale.batch, 4, dtype=torch.bool, device=device)
    given[:, 3] = True
    gate = torch.ones(scale.batch, device=device)

    wan_stock = scale.base == "wan"
    inputs = {"hidden_states": latents, "encoder_hidden_states": text, "timestep": timestep}
    plain = {**inputs, "hidden_states": latents.transpose(1, 2)} if wan_stock else inputs
    variants = {}

    def step(model: Any, **options: Any) -> Callable[[], None]:
        if device != "cpu":
            model.to(device=device, dtype=dtype)
        model.train()
        said = {**(plain if model is stock else inputs), **options}

        def run() -> None:
            model.zero_grad(set_to_none=True)
            model(**said, return_dict=False)[0].float().square().mean().backward()

        return run

    if wan_stock:
        side = stock.config.patch_size[1]
        tokens = scale.frames * (scale.height // side) * (scale.width // side)
        each = timestep[:, None].expand(-1, tokens)
        variants["diffusers, a timestep a token"] = step(stock, timestep=each)
    if adapted_too:
        variants["ours, LoRA motion + content"] = step(adapted, given=given, motion_gate=gate)
    return {
        "diffusers": step(stock),
        "ours": step(ours, given=given),
        **variants,
    }


def timed(run: Callable[[], None], gpu: bool) -> float:
    if not gpu:
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def backends(gpu: bool) -> Iterator[tuple[str, Any]]:
    """Attention kernels to measure with, as (name, context manager)."""
    if not gpu:
        yield "cpu", contextlib.nullcontext()
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        yield name.split("_")[0].lower(), sdpa_kernel(getattr(SDPBackend, name))


def measure(scale: Scale, repeats: int, gpu: bool) -> None:
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    runs = steps(scale, device, dtype)
    for backend, kernel in backends(gpu):
        if backend == "math" and scale.frames * scale.height > 800:
            continue  # its score matrix alone is 30 GB
        with kernel:
            for run in runs.values():
                run()
            rounds = [{n: timed(run, gpu) for n, run in runs.items()} for _ in range(repeats)]
        base = statistics.median(r["diffusers"] for r in rounds)
        print(f"{scale.name}, {backend}: diffusers {base * 1e3:.1f} ms a step")
        for name in list(runs)[1:]:
            ratio = statistics.median(r[name] / r["diffusers"] for r in rounds)
            print(f"  {name:<28} {ratio:.3f}x")


def print_bytes() -> None:
    """Bytes that live at once in a step of one Wan block at 480x832, beside the inputs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    width = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
    scale = Scale("", 1, 20, 16, 60, 104, 1536, {**width, "num_layers": 1}, "wan")
    print("1.3B width, one block, 31,200 tokens, fp32: bytes of a step that live at once")
    with FakeTensorMode():
        for name, run in steps(scale, "cpu", torch.float32, adapted_too=False).items():
            run()
            with Live() as live:
                run()
            print(f"  {name:<30} {live.most / 2**30:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", nargs="+", default=["cogvideox", "wan"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--gpu", action="store_true", help="bf16 on a GPU, the full 2B too")
    options = parser.parse_args()
    torch.manual_seed(0)
    if not options.gpu:
        torch.set_num_threads(1)
    for base in options.base:
        for scale in (wan_scales if base == "wan" else scales)(options.gpu):
            measure(scale, options.repeats, options.gpu)
    if "wan" in options.base:
        print_bytes()


if __name__ == "__main__":
    main()
