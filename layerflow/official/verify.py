"""Proof against golden files: run our code on official inputs, compare every official output.

A golden file is one of four kinds, told by its tensors: a network with weights (``w.*``), a
sampling run (``x.init_noise``), a training loss (``x.motion_scale``) or the schedule
(``table.*``). All eight released configurations are served alike.

The tolerance is absolute. Two kinds of output scale it, because they scale the golden file's own
float32 rounding: guided x0, where guidance s multiplies it by |s| + |1 - s|, and the (unused)
epsilon weights 1/abar, which reach 1.6e7.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerflow.model import adapters
from layerflow.model.cogvideox.from_base import make_scheduler
from layerflow.model.cogvideox.noise import VPrediction
from layerflow.model.cogvideox.official_sampler import (
    NUM_TRAIN_STEPS,
    denoise,
    official_schedule,
    sample_official,
    shifted_alphas_cumprod,
    signal_table,
)
from layerflow.model.cogvideox.transformer import LayerFlowTransformer3DModel
from layerflow.model.denoise import dynamic_guidance
from layerflow.model.layers import OfficialTask
from layerflow.model.objective import sequence_loss
from layerflow.official.golden import (
    Results,
    Tensors,
    generated_rows,
    insert_given,
    load_network,
    read_golden,
    snap,
)


def verify_file(path: str | Path) -> Results:
    """Check one golden file of any kind. ValueError if it is none, or says nothing to compare."""
    path = Path(path)
    metadata, tensors = read_golden(path)
    if "table.alphas_cumprod_sqrt" in tensors:
        return verify_schedule(tensors, path.name)
    if any(key.startswith("w.") for key in tensors):
        model = load_network(metadata, tensors)
        return verify_network(model, tensors, path.name)
    if "weights" not in metadata:
        raise ValueError(f"{path} is no golden file: it has no weights and names none")
    weights = path.parent / Path(metadata["weights"].split()[0]).name
    model = load_network(*read_golden(weights))
    if "x.init_noise" in tensors:
        return verify_sampler(model, tensors, path.name)
    if "x.motion_scale" in tensors:
        return verify_loss(model, tensors, path.name)
    raise ValueError(f"{path} is no golden file: neither network, sampler, loss nor schedule")


def _task(model: LayerFlowTransformer3DModel) -> OfficialTask:
    assert model.official is not None
    return model.official


VARIANTS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "infer": (("motion", "content"), (0.0,)),
    "nolora": ((), (0.0,)),
    "content_noswitch": (("content",), (0.0,)),
    "motion_stage1": (("motion",), (1.0,)),
    "both_scale1": (("motion", "content"), (1.0,)),
    "train_scale_1_0": (("motion", "content"), (1.0, 0.0)),
}
"""Golden variant -> active adapters and the motion gate."""


@torch.no_grad()
def verify_network(model: LayerFlowTransformer3DModel, tensors: Tensors, name: str) -> Results:
    """All outputs of a network file: every case, every variant, and the denoiser around them."""
    task = _task(model)
    results = Results(name, f"network {task.name}")
    for case in sorted(
        {key.split(".")[1] for key in tensors if key.startswith("x.") and "idx" in key}
    ):
        sequence = insert_given(task, tensors[f"x.{case}.noisy"], tensors.get("x.cond_input"))
        for variant in VARIANTS:
            if any(key.startswith(f"y.{case}.{variant}.") for key in tensors):
                _verify_variant(model, tensors, results, case, variant, sequence)
        _verify_denoiser(model, tensors, results, case, sequence)
    rows = "y.pos_plus_layer_embedding_text_rows"
    if rows in tensors:
        table = model.position_tables.text
        if model.layer_embedding.text is not None:
            table = table + model.layer_embedding.text[:, None]
        results.compare(rows, table.flatten(0, 1), tensors[rows])
    results.check_complete(tensors)
    return results


def _verify_variant(
    model: LayerFlowTransformer3DModel,
    tensors: Tensors,
    results: Results,
    case: str,
    variant: str,
    sequence: Tensor,
) -> None:
    task = _task(model)
    active, gates = VARIANTS[variant]
    hidden = _Hidden(model) if variant == "infer" and f"d.{case}.hidden_0" in tensors else None
    text = tensors["x.text"].view(len(sequence), -1, tensors["x.text"].shape[-1])
    gate = torch.tensor(gates).expand(len(sequence))
    if active:
        model.enable_adapters()
        model.set_adapter(list(active))
    elif adapters.adapter_names(model):
        model.disable_adapters()
    full = model(sequence, text, tensors[f"x.{case}.idx"], motion_gate=gate, return_dict=False)[0]
    if adapters.adapter_names(model):
        model.enable_adapters()
        model.set_adapter(adapters.adapter_names(model))
    out = generated_rows(task, full)
    prefix = f"y.{case}.{variant}"
    outputs = {f"{prefix}.net_full": full, f"{prefix}.net_out": out}
    index = snap(tensors[f"x.{case}.sigma"])
    outputs[f"{prefix}.denoised"] = denoise(out, tensors[f"x.{case}.noisy"], index)
    if hidden is not None:
        states = hidden.finish(tensors[f"d.{case}.token_idx"])
        outputs |= {f"d.{case}.hidden_{i}": state for i, state in enumerate(states)}
    results.compare_all(outputs, tensors)


class _Hidden:
    """Collects the tokens that enter the first block and leave each block."""

    def __init__(self, model: LayerFlowTransformer3DModel) -> None:
        self.states: list[Tensor] = []
        blocks = model.transformer_blocks
        self.handles = [blocks[0].register_forward_pre_hook(self._enter)]
        self.handles += [block.register_forward_hook(self._leave) for block in blocks]

    def _enter(self, _module: Any, inputs: Any) -> None:
        video, text = inputs[:2]
        self.states.append(torch.cat([text, video], 1))

    def _leave(self, _module: Any, _inputs: Any, output: Any) -> None:
        video, text = output
        self.states.append(torch.cat([text, video], 1))

    def finish(self, tokens: Tensor) -> list[Tensor]:
        for handle in self.handles:
            handle.remove()
        return [state[:, tokens] for state in self.states]


def _verify_denoiser(
    model: LayerFlowTransformer3DModel,
    tensors: Tensors,
    results: Results,
    case: str,
    sequence: Tensor,
) -> None:
    timestep = tensors[f"x.{case}.idx"]
    a = torch.from_numpy(signal_table())[snap(tensors[f"x.{case}.sigma"])]
    temb = model.time_embedding(model.time_proj(timestep).to(model.dtype))
    outputs = {
        "c_noise": timestep.float(),
        "sigma_quantised": a,
        "c_skip": a,
        "c_out": -((1 - a**2).sqrt()),
        "c_in": torch.ones_like(a),
        "time_emb": temb,
        "net_images": sequence,
    }
    for key, value in outputs.items():
        if f"y.{case}.{key}" in tensors:
            expected = tensors[f"y.{case}.{key}"]
            results.compare(f"y.{case}.{key}", value.to(expected.dtype), expected)


@torch.no_grad()
def verify_sampler(model: LayerFlowTransformer3DModel, tensors: Tensors, name: str) -> Results:
    """A whole sampling run with the file's own noise: every step's outputs."""
    task = _task(model)
    results = Results(name, f"sampler {task.name}")
    steps = len(tensors["y.timesteps"])
    schedule = official_schedule(steps)
    results.compare("y.timesteps", schedule.timesteps, tensors["y.timesteps"])
    results.compare("y.alpha", schedule.signal[:-1], tensors["y.alpha"])
    results.compare("y.alpha_next", schedule.signal[1:], tensors["y.alpha_next"])
    cond = tensors["x.text_cond"].flatten(0, 1)[None]
    text = torch.cat([torch.zeros_like(cond), cond])
    given = tensors.get("x.cond_input")
    noises = iter(
        tensors[key]
        for i in range(steps)
        for key in (f"n.{i}.first", f"n.{i}.second")
        if key in tensors
    )
    outputs: Tensors = {}
    units: dict[str, float] = {}
    step = [0]

    def network(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        sequence = insert_given(task, x, given)
        full = model(
            torch.cat([sequence] * 2), text, t.expand(2), motion_gate=None, return_dict=False
        )[0]
        v = generated_rows(task, full)
        outputs[f"y.{step[0]}.net_out_uncond_then_cond"] = v
        index = int(schedule.snapped[step[0]])
        x0 = denoise(v, torch.cat([x] * 2), torch.tensor([index, index]))
        scale = dynamic_guidance(6.0, int(t), steps)
        outputs[f"y.{step[0]}.denoised_cfg"] = x0[:1] + scale * (x0[1:] - x0[:1])
        units[f"y.{step[0]}.denoised_cfg"] = abs(scale) + abs(1 - scale)
        return v[:1], v[1:]

    def on_step(i: int, _t: int, x: Tensor) -> Tensor:
        outputs[f"y.{i}.x_after"] = x
        step[0] = i + 1
        return x

    draw = lambda: next(noises)  # noqa: E731
    outputs["y.samples"] = sample_official(
        network, tensors["x.init_noise"], steps, 6.0, draw, on_step
    )
    results.compare_all(dict(sorted(outputs.items())), tensors, **units)
    results.check_complete(tensors)
    return results


@torch.no_grad()
def verify_loss(model: LayerFlowTransformer3DModel, tensors: Tensors, name: str) -> Results:
    """A training loss on fixed input, through the objective that the trainer uses."""
    task = _task(model)
    results = Results(name, f"loss {task.name}")
    process = VPrediction(make_scheduler("dpm"))
    t, gate = tensors["x.idx"], tensors["x.motion_scale"].float()
    given = tensors.get("x.cond_input")
    clean = insert_given(task, tensors["x.x0"], given)
    noise = tensors["x.noise"]
    if given is not None:
        noise = insert_given(task, noise, torch.zeros_like(given))
    text = tensors["x.text"].view(len(clean), -1, tensors["x.text"].shape[-1])
    mask = torch.tensor(task.layout.given_frames()).expand(len(clean), -1)
    loss, v = sequence_loss(model, process, clean, text, mask, t, noise, motion_gate=gate)
    a = torch.from_numpy(signal_table())[t]
    net_out = generated_rows(task, v)
    noised = generated_rows(task, process.add_noise(clean, noise, t))
    target = generated_rows(task, process.target(clean, noise, t))
    outputs = {
        "y.alphas_cumprod_sqrt": a,
        "y.noised": noised,
        "y.net_out_v": net_out,
        "y.denoised": denoise(net_out, noised, t),
        "y.loss_per_sample": loss,
        "y.loss_mean": loss.mean()[None],
        "y.v_mse_per_sample_check": (net_out - target).square().flatten(1).mean(1),
        "y.weight": 1 / (1 - a**2),
    }
    for key, value in outputs.items():
        if key in tensors:
            results.compare(key, value.reshape(tensors[key].shape), tensors[key])
    results.check_complete(tensors)
    return results


def verify_schedule(tensors: Tensors, name: str) -> Results:
    """The 1000-entry tables, ours and diffusers', and the samplers' tables."""
    results = Results(name, "schedule")
    a = torch.from_numpy(signal_table())
    outputs: dict[str, Any] = {
        "table.alphas_cumprod_sqrt": a,
        "table.alphas_cumprod_shifted_no_rescale_f64": shifted_alphas_cumprod(),
        "table.c_skip": a,
        "table.c_out": -((1 - a**2).sqrt()),
        "table.c_in": torch.ones(NUM_TRAIN_STEPS),
        "table.c_noise": torch.arange(NUM_TRAIN_STEPS),
        "table.loss_weight": 1 / (1 - a**2),
        "table.eps_weighting_unused": 1 / a**2,
    }
    for count in (4, 10, 50):
        schedule, prefix = official_schedule(count), f"sampler{count}."
        times = schedule.timesteps.tolist()
        outputs |= {
            f"{prefix}timesteps_desc": schedule.timesteps,
            f"{prefix}alphas_cumprod_sqrt_desc": schedule.signal,
            f"{prefix}quantised_idx": schedule.snapped,
            f"{prefix}quantised_alpha": signal_table()[schedule.snapped],
            f"{prefix}cfg_scale_f64": np.array([dynamic_guidance(6.0, t, count) for t in times]),
            f"{prefix}mult1_mult2_mult3_mult4_multnoise": schedule.multipliers,
        }
    units = {}
    if (weights := tensors.get("table.eps_weighting_unused")) is not None:
        units["table.eps_weighting_unused"] = float(weights[weights.isfinite()].abs().max())
    results.compare_all(outputs, tensors, **units)
    for kind in ("ddim", "dpm"):
        ours = make_scheduler(kind).alphas_cumprod.double().sqrt()
        results.compare(f"diffusers {kind} scheduler", ours, tensors["table.alphas_cumprod_sqrt"])
    results.check_complete(tensors)
    return results
