"""Training steps at the paper's size on one GPU: seconds, TFLOP/s, MFU, memory against the plan.

    python bench/train_gpu.py [--stages content base] [--compile no yes] [--attention flash cudnn]
                              [--checkpointing none full] [--quantize none int8 nf4]
                              [--steps 5] [--minutes 10] [--json FILE]
    python bench/train_gpu.py --tiny         # the tiny network on a CPU: does the script work?

CogVideoX-2B's shape with random weights in bf16 autocast, one sample of 4 layers of 13 x 480x720
frames (4 latent frames each): 22,278 tokens. The stages are those of
`manifests/layerflow-2b-one-gpu.yaml`, the step is what `trainer.loop` does with them, made of the
loop's own parts, without a loader; two steps warm up. Needs torch, diffusers, peft, pydantic
and PyYAML, no ray, datasets or pyarrow.

FLOPs are the model's (`trainer.metrics.step_costs`): recomputation does not count. "planned" is
what `layerflow train --plan` says of memory, "reserved" the most that torch took from the device;
"waits" are the operations of one more step that made the host wait for the device: none should.
Rows of a quantised base follow those in bf16, with the first kernel, eager. After `--minutes` no
further variant is begun.
`python -m bench.train_memory` counts the same bytes without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from layerflow.layer_set import layer_set
from layerflow.model.base import base_of, block_parts
from layerflow.model.cogvideox.costs import step_costs
from layerflow.model.cogvideox.from_base import make_scheduler
from layerflow.model.cogvideox.noise import VPrediction
from layerflow.model.cogvideox.presets import TINY, tiny_transformer
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.noise import NoiseProcess
from layerflow.model.objective import layer_loss
from layerflow.model.wan.noise import FlowMatching
from manifests.train import TrainManifest, load
from manifests.train_stage import Stage
from trainer.data import Batch
from trainer.distributed.processes import ALONE
from trainer.memory.hold import held_bytes, hold
from trainer.metrics import device_peak, memory_gib
from trainer.planning.costs import input_bytes, memory_bytes
from trainer.runtime import attention_kernel, prepare
from trainer.stages import attach, lay_out, trainable_names

MANIFEST = Path(__file__).parents[1] / "manifests" / "layerflow-2b-one-gpu.yaml"
SHAPE_2B = (1, 4, 4, 16, 60, 90)  # samples, layers, latent frames, channels, height, width
SHAPE_TINY = (1, 4, 1, 27, 4, 4)
CONFIG_2B = {
    "num_attention_heads": 30,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "num_layers": 30,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 61,
    "patch_size": 2,
    "max_text_seq_length": 678,
    "num_text_tokens": 226,
    "latent_frames": 4,
}


@dataclass(frozen=True)
class Figures:
    """Of one variant. seconds: median of its steps; gib: the most that was reserved,
    allocated_gib: the most of it that tensors held at once."""

    stage: str
    compile: bool
    attention: str
    checkpointing: str
    quantize: str = "none"
    tokens: int = 0
    seconds: float | None = None
    tflops: float | None = None
    mfu: float | None = None
    gib: float | None = None
    allocated_gib: float | None = None
    planned_gib: float | None = None
    waits: int | None = None
    error: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", default=["content", "base"])
    parser.add_argument("--compile", nargs="+", default=["no", "yes"], choices=["no", "yes"])
    parser.add_argument("--attention", nargs="+", default=["flash", "cudnn"])
    parser.add_argument("--checkpointing", nargs="+", default=["none", "full"])
    parser.add_argument("--quantize", nargs="+", default=["none", "int8", "nf4"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --tiny tries the script on a CPU")
    device = torch.device("cpu" if options.tiny else "cuda")
    if options.tiny:
        options.attention = ["auto"]
    print(
        f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, {torch.__version__}"
    )
    found, end = [], time.monotonic() + 60 * options.minutes
    for name, changes in variants(options):
        if time.monotonic() > end:
            print(f"{options.minutes:g} minutes are over: the rest was not measured")
            break
        manifest = load(MANIFEST).model_copy(update=changes)
        found.append(measure(manifest, name, device, options.steps))
        print(line(found[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(figures) for figures in found], indent=1))


def variants(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stages and changes of the manifest: all in bf16, then those of a quantised base."""
    kinds = [kind for kind in options.quantize if kind != "none"]
    plain = itertools.product(options.compile, options.attention, options.checkpointing)
    ways = [(*way, None) for way in plain] if "none" in options.quantize else []
    packed = itertools.product(options.checkpointing, kinds)
    ways += [("no", options.attention[0], kept, kind) for kept, kind in packed]
    for name, (compiled, attention, kept, kind) in itertools.product(options.stages, ways):
        how = {"compile": compiled == "yes", "attention": attention, "checkpointing": kept}
        yield name, {"precision": "bf16", "quantize": kind, **how}


def measure(manifest: TrainManifest, name: str, device: torch.device, steps: int) -> Figures:
    """One variant; running out of memory is a figure too, and so is a kernel that is not there."""
    how = (manifest.attention, manifest.checkpointing, manifest.quantize or "none")
    labels = (name, manifest.compile, *how)
    try:
        return run(manifest, manifest.stage(name), device, steps, labels)
    except torch.OutOfMemoryError:
        return Figures(*labels, error="out of memory")
    except (RuntimeError, ValueError) as error:
        return Figures(*labels, error=str(error).splitlines()[0])
    finally:
        gc.collect()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def run(
    manifest: TrainManifest, stage: Stage, device: torch.device, steps: int, labels: Any
) -> Figures:
    shape = SHAPE_2B if device.type == "cuda" else SHAPE_TINY
    transformer = network(device)
    for earlier in manifest.stages:  # an earlier stage's adapter stays on the network
        attach(transformer, earlier, manifest.seed)
        if earlier.name == stage.name:
            break
    names = trainable_names(transformer, stage)
    costs = step_costs(transformer, shape[1:], set(names))
    hold(transformer, manifest, manifest.stages_from(stage), device)
    planned = planned_bytes(manifest, stage, transformer, shape)
    with ExitStack() as stack:
        stack.enter_context(attention_kernel(manifest, device))
        step = training_step(prepare(transformer, manifest), manifest, stage, shape, device)
        for _ in range(2):  # compilation and the choice of kernels
            timed(step, device)
        seconds = statistics.median(timed(step, device) for _ in range(steps))
        waits = count_waits(step) if device.type == "cuda" else None
    rate, peak = shape[0] * costs.total / seconds, device_peak(device)
    return Figures(
        *labels,
        tokens=costs.tokens,
        seconds=seconds,
        tflops=rate / 1e12,
        mfu=rate / peak if peak else None,
        gib=memory_gib(device),
        allocated_gib=torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        planned_gib=planned / 2**30,
        waits=waits,
    )


def count_waits(step: Callable[[], None]) -> int:
    """How often a step makes the host wait for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in said)


def planned_bytes(
    manifest: TrainManifest, stage: Stage, transformer: Any, shape: tuple[int, ...]
) -> float:
    """What `layerflow train --plan` says of such a step's memory."""
    names = trainable_names(transformer, stage)
    sizes = {n: p.numel() for n, p in transformer.named_parameters()}
    held = held_bytes(transformer, manifest, manifest.stages_from(stage))
    prompts = len(layer_set(transformer.config.layers).prompted)
    return memory_bytes(
        manifest,
        transformer,
        block_parts(transformer, names),
        weights=held,
        trained=sum(sizes[n] for n in names),
        average=stage.ema is not None,
        tokens=shape[0] * base_of(transformer).step_costs(transformer, shape[1:], names).tokens,
        inputs=shape[0] * input_bytes(transformer, shape[1:], prompts),
    )


def network(device: torch.device) -> Any:
    """The transformer with random weights, in fp32."""
    torch.manual_seed(0)
    if device.type == "cpu":
        return tiny_transformer({**TINY, "num_layers": 7}, channels=SHAPE_TINY[3])
    with device:
        return LayerFlowTransformer3DModel(**CONFIG_2B)


def training_step(
    transformer: Any,
    manifest: TrainManifest,
    stage: Stage,
    shape: tuple[int, ...],
    device: torch.device,
) -> Callable[[], None]:
    """What the loop does with one batch."""
    trained = lay_out(transformer, stage, ALONE, bf16=manifest.precision == "bf16")
    optimizer = trained.optimizer(stage.optimizer or manifest.optimizer)
    batch = random_batch(transformer, shape).to(device)
    process = noise_of(transformer)
    clip = (stage.optimizer or manifest.optimizer).clip

    def step() -> None:
        trained.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, manifest.precision == "bf16"):
            losses = layer_loss(transformer, process, *batch.tensors(), layers=batch.layers)
        losses.mean().backward()
        norm = trained.clip(clip)
        optimizer.found_inf = (~norm.isfinite()).float()
        optimizer.step()
        trained.update_average(optimizer.found_inf, torch.tensor(0.0, device=device))

    return step


def noise_of(transformer: Any) -> NoiseProcess:
    """A noise process of the network's base."""
    wan = base_of(transformer).name == "wan"
    return FlowMatching() if wan else VPrediction(make_scheduler("ddim"))


def random_batch(transformer: Any, shape: tuple[int, ...]) -> Batch:
    """shape: ``[B, n, f, C, h, w]``; the n layers are all of the network's."""
    config = transformer.config
    samples, layers = shape[0], layer_set(config.layers)
    text = (samples, len(layers.prompted), *base_of(transformer).text_shape(config))
    return Batch(
        latents=torch.randn(shape),
        noise=torch.randn(shape),
        prompt_embeds=torch.randn(text),
        given=torch.zeros(samples, shape[1], dtype=torch.bool),
        timesteps=torch.full((samples,), 500),
        motion_gate=torch.ones(samples),
        layers=layers.layers,
    )


def timed(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def line(figures: Figures) -> str:
    compiled = "compiled" if figures.compile else "eager"
    label = f"{figures.stage:8} {compiled:8} {figures.attention:6} {figures.checkpointing:5}"
    label += "" if figures.quantize == "none" else f" {figures.quantize}"
    if figures.error or figures.seconds is None:
        return f"{label} {figures.error}"
    mfu = f"{100 * figures.mfu:.1f} % MFU" if figures.mfu is not None else "no peak known"
    return (
        f"{label} {figures.tokens} tokens  {figures.seconds:.3f} s  {figures.tflops:.4g} TFLOP/s  "
        f"{mfu}  reserved {figures.gib:.2f} GiB, planned {figures.planned_gib:.2f}"
        + (f"  {figures.waits} waits" if figures.waits is not None else "")
    )


if __name__ == "__main__":
    main()
