"""Weights held in less than fp32, in CPU memory, or packed: what changes no digit, and what how
little; and that what a run exports is what its model had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from layerflow.model import adapters
from layerflow.model.base import base_of
from manifests.train import TrainManifest, parse
from tests.support.trainer_kit import make_latents, make_manifest, make_model, same, weights
from trainer import loop, metrics, sampling
from trainer.export import load_model
from trainer.memory import hold as holding
from trainer.memory.quantized import QuantizedLinear, packed_bytes, quantize
from trainer.memory.swap import Swap
from trainer.stages import attach

CPU = torch.device("cpu")
FIVE_BLOCKS: dict[str, Any] = {  # more than there are places
    "base": {"trains": {"blocks": [3], "also": ["layer_embedding*"]}, "steps": 3},
    "motion": {"trains": {"lora": "motion", "rank": 2}, "steps": 2},
    "content": {"trains": {"lora": "content", "rank": 2}, "steps": 3},
}


def silent(line: str) -> None:
    pass


def run(manifest: TrainManifest, **options: Any) -> bool:
    return loop.train(manifest, manifest.out, log=silent, **options)


def losses(manifest: TrainManifest) -> list[float]:
    return [row["loss"] for row in metrics.read(Path(manifest.out) / "metrics.csv")]


def exported(manifest: TrainManifest) -> dict[str, torch.Tensor]:
    return weights(Path(manifest.out) / "export")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainManifest]:
    """Manifests of short stages over one model of five blocks."""
    folder = tmp_path_factory.mktemp("hold")
    make_model(folder / "model", layers=5)
    make_latents(folder / "video", count=10)
    make_latents(folder / "stills", count=6, kind="image", frames=1, seed=1)

    def make(name: str, **changes: Any) -> TrainManifest:
        kit = make_manifest(folder).model_dump()
        stages = [stage | FIVE_BLOCKS[stage["name"]] for stage in kit["stages"]]
        return parse(kit | {"stages": stages, "out": str(folder / name)} | changes)

    return make


@pytest.fixture(scope="module")
def plain(make: Callable[..., TrainManifest]) -> Callable[[str], TrainManifest]:
    """A finished run of a precision with every weight in fp32 on the device, as any of before."""
    done: dict[str, TrainManifest] = {}

    def of(precision: str) -> TrainManifest:
        if precision not in done:
            done[precision] = make(f"plain-{precision}", precision=precision)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop, "hold", lambda network, *rest: network.to(rest[-1]))
                assert run(done[precision])
        return done[precision]

    return of


@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        ("bf16", {}),
        ("bf16", {"checkpointing": "full", "offload": ["activations"]}),
        ("bf16", {"checkpointing": "selective", "offload": ["weights"]}),
        ("bf16", {"checkpointing": "full", "offload": ["activations", "weights"]}),
        ("fp32", {"checkpointing": "full", "offload": ["activations", "weights"]}),
    ],
    ids=["held", "activations", "weights", "both", "both-fp32"],
)
def test_a_run_in_less_memory_is_equal_bit_by_bit(
    make: Callable[..., TrainManifest],
    plain: Callable[[str], TrainManifest],
    precision: str,
    changes: dict[str, Any],
) -> None:
    """To one with all weights in fp32 on the device; and so is its export."""
    name = "-".join([precision, *changes.get("offload", []), changes.get("checkpointing", "")])
    manifest = make(name, precision=precision, **changes)
    assert run(manifest)
    assert losses(manifest) == losses(plain(precision))
    assert same(exported(manifest), exported(plain(precision)))


def test_frozen_matrices_are_in_bf16_and_what_trains_later_is_not(
    make: Callable[..., TrainManifest],
) -> None:
    manifest = make("types", precision="bf16")
    model = load_model(manifest.model, CPU)[0]

    def halves() -> set[str]:
        return {n for n, p in model.named_parameters() if p.dtype == torch.bfloat16}

    holding.hold(model, manifest, manifest.stages, CPU)
    first = halves()
    assert "transformer_blocks.0.attn1.to_q.weight" in first
    assert "transformer_blocks.0.ff.net.2.bias" in first
    assert not any(".3." in name[:21] or "norm1.norm" in name or "embed" in name for name in first)
    holding.hold(model, manifest, manifest.stages[1:], CPU)
    later = halves() - first
    assert later and all(name.startswith("transformer_blocks.3.") for name in later)


def test_an_adapter_begins_the_same_on_whatever_the_weights_below_are_held_in(
    make: Callable[..., TrainManifest],
) -> None:
    manifest = make("start", precision="bf16")
    wide, narrow = (load_model(manifest.model, CPU)[0] for _ in range(2))
    holding.hold(narrow, manifest, [], CPU)
    for model in (wide, narrow):
        attach(model, manifest.stages[2], 7)
    starts = [adapters.adapter_parameters(model, "content") for model in (wide, narrow)]
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    layer = narrow.transformer_blocks[0].attn1.to_q.base_layer
    assert layer.weight.dtype == torch.bfloat16 and layer.weight.data.is_contiguous()


def test_what_is_stored_in_bf16_is_exported_in_bf16(
    make: Callable[..., TrainManifest], tmp_path: Path
) -> None:
    """With the same bytes, but for what trained."""
    start = make("narrow", precision="bf16")
    half = base_of(start.model).transformer.from_pretrained(
        Path(start.model) / "transformer", dtype=torch.bfloat16
    )
    make_model(tmp_path / "model", layers=5)
    half.save_pretrained(tmp_path / "model" / "transformer")
    manifest = start.model_copy(update={"model": str(tmp_path / "model")})
    assert run(manifest)
    before, after = weights(tmp_path / "model"), exported(manifest)
    for name, tensor in before.items():
        if ".3." in name or "layer_embedding" in name:
            assert after[name].dtype == torch.float32
        else:
            assert torch.equal(after[name].to(tensor), tensor), name
        if name.endswith("0.attn1.to_q.weight"):
            assert after[name].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_run_resumes_exactly_and_its_losses_are_near(
    make: Callable[..., TrainManifest], plain: Callable[[str], TrainManifest], kind: str
) -> None:
    """Within 2 % of those in bf16; what is frozen is exported as it was; and it may be swapped."""

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == 6:
            raise KeyboardInterrupt

    unbroken = make(f"{kind}-whole", precision="bf16", quantize=kind)
    assert run(unbroken)
    parts = make(f"{kind}-parts", precision="bf16", quantize=kind, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        run(parts, report=kill)
    swapped = {"checkpointing": "full", "offload": ["weights", "activations"]}
    assert run(parse(parts.model_dump() | swapped))
    assert losses(parts) == losses(unbroken)
    assert same(exported(parts), exported(unbroken))
    there = losses(plain("bf16"))
    assert losses(unbroken) != there
    assert losses(unbroken) == pytest.approx(there, rel=0.02)
    start, end = weights(Path(unbroken.model)), exported(unbroken)
    frozen = [n for n in start if "blocks" in n and ".3." not in n]
    assert frozen and all(torch.equal(start[name], end[name]) for name in frozen)


def test_samples_come_from_a_network_that_is_held_as_the_run_s(
    make: Callable[..., TrainManifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {}

    def look(network: Any, *rest: Any) -> None:
        holding.hold(network, *rest)
        held.update({name: p.dtype for name, p in network.named_parameters()})

    monkeypatch.setattr(sampling, "hold", look)
    monkeypatch.setattr(sampling, "load_file", lambda path: {})
    manifest = make("plain-bf16", precision="bf16")
    job = sampling.SampleJob("", manifest.out, manifest.out, "base", 3)
    sampling.build_pipeline(job, manifest)
    assert held["transformer_blocks.3.attn1.to_q.weight"] == torch.bfloat16
    assert held["proj_out.weight"] == torch.float32


# ---- quantisation -----------------------------------------------------------------------------


LEVELS = (  # of nf4: QLoRA (arXiv 2305.14314), appendix E
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_packed_matrix_is_the_nearest_that_its_levels_allow(kind: str) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 32)
    full = layer.weight.data.clone()
    quantize(layer, kind)
    assert isinstance(layer, QuantizedLinear)
    made = layer.full(torch.float32)
    if kind == "int8":
        scale = full.abs().amax(1, keepdim=True) / 127
        assert ((made - full).abs() <= scale * 0.5001).all()
        return
    groups = full.view(-1, 64)
    choices = torch.tensor(LEVELS) * groups.abs().amax(1, keepdim=True)[:, :, None]
    nearest = (choices - groups[:, :, None]).abs().amin(2)
    assert torch.allclose((made.view(-1, 64) - groups).abs(), nearest, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("shape", [(64, 32), (10, 7), (5, 7)])
def test_a_packed_layer_is_a_linear_layer_of_the_matrix_that_it_stands_for(
    kind: str, shape: tuple[int, int]
) -> None:
    """Also where its numbers do not divide into groups; and its bytes are those said before."""
    torch.manual_seed(0)
    layer, usual = torch.nn.Linear(*shape), torch.nn.Linear(*shape)
    usual.bias = layer.bias
    said = packed_bytes(layer, kind)
    quantize(layer, kind)
    assert isinstance(layer, QuantizedLinear)
    assert said == layer.weight.nbytes + layer.scale.nbytes
    usual.weight.data = layer.full(torch.float32)
    inputs = [torch.randn(3, 5, shape[0]).requires_grad_() for _ in range(2)]
    inputs[1].data = inputs[0].data.clone()
    outputs = [layer(inputs[0]), usual(inputs[1])]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


# ---- swap -------------------------------------------------------------------------------------


def test_blocks_take_turns_in_two_places_one_ahead_both_ways() -> None:
    blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(5)).requires_grad_(False)
    before = [block.weight.data.clone() for block in blocks]
    swap = Swap(list(blocks), [[block] for block in blocks], CPU).attach()
    places, copied = {swap.places[i].data_ptr() for i in range(2)}, []
    bring = swap.bring

    def watch(index: int) -> None:
        if swap.held[index % 2] != index:
            copied.append(index)
        bring(index)

    swap.bring = watch  # type: ignore[method-assign]
    seen = []

    def look(index: int) -> None:
        def run(values: torch.Tensor) -> torch.Tensor:
            assert blocks[index].weight.data_ptr() in places
            assert torch.equal(blocks[index].weight, before[index])
            seen.append(index)
            return torch.nn.functional.linear(values, blocks[index].weight)

        blocks[index].forward = run  # type: ignore[method-assign]

    values = torch.ones(1, 4)
    for index in range(5):
        look(index)
    for index in (0, 1, 2, 3, 4, 4, 3, 2, 1, 0):
        blocks[index](values)
        assert blocks[index].weight.data_ptr() not in places
    assert seen == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]
    assert copied == [0, 1, 2, 3, 4, 2, 1, 0]  # 4 and 3 are there still
    swap.detach()
    assert not blocks[0]._forward_hooks and not blocks[0]._forward_pre_hooks


def test_options_that_do_not_go_together_are_refused(make: Callable[..., TrainManifest]) -> None:
    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            make("x", **changes)

    refused("activations needs checkpointing: full", offload=["activations"])
    refused("needs checkpointing", offload=["weights"])
    refused("compile", offload=["weights"], checkpointing="full", compile=True)
    sharded = [make("x").stages[0].model_dump() | {"parallel": "fsdp"}]
    refused("quantize: not while", stages=sharded, quantize="int8")
    full = {"stages": sharded, "checkpointing": "full"}
    refused("offload: not while", offload=["weights"], **full)
