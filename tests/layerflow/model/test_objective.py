"""The loss, with CogVideoX' noise process."""

from __future__ import annotations

import pytest
import torch

from layerflow.model import objective
from layerflow.model.cogvideox.from_base import make_scheduler
from layerflow.model.cogvideox.noise import VPrediction
from tests.support.model_kit import batch, small_transformer


class Oracle(torch.nn.Module):
    """Predicts the right v, but `error` too much; keeps what it was shown."""

    dtype = torch.float32

    def __init__(self, target, error):
        super().__init__()
        self.target, self.error = target, error

    def forward(self, latents, text, timestep, **options):
        self.seen = latents
        return (self.target.flatten(1, 2) + self.error,)


def test_loss_is_the_mean_over_generated_elements():
    process, data = VPrediction(make_scheduler("ddim")), batch()
    data["given"] = torch.tensor([[0, 0, 0, 1], [1, 1, 0, 0]], dtype=torch.bool)
    target = process.target(data["latents"], data["noise"], data["timesteps"])
    error = torch.zeros(2, 4, 2, 1, 1, 1)
    error[0, 3] = 100.0  # given: must not count
    error[0, 1] = 3.0
    error[1, 2] = 2.0
    oracle = Oracle(target, error.flatten(1, 2))
    loss = objective.layer_loss(oracle, process, **data)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, torch.tensor([9.0 / 3, 4.0 / 2]), rtol=1e-4)


def test_loss_is_the_mean_over_known_generated_elements():
    process, data = VPrediction(make_scheduler("ddim")), batch(3)
    given = torch.tensor([[0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    target = process.target(data["latents"], data["noise"], data["timesteps"])
    torch.manual_seed(5)
    error = torch.randn(target.shape)
    known = torch.rand(*target.shape[:3], *target.shape[4:]) > 0.4
    known[2, :3] = False  # of the third sample only what is given is known
    oracle = Oracle(target, error.flatten(1, 2).requires_grad_())
    loss = objective.layer_loss(oracle, process, **data | {"given": given}, known=known)
    for sample in range(2):
        squares = [
            float(value) ** 2
            for layer in range(4)
            for frame, y, x in known[sample, layer].nonzero().tolist()
            for value in error[sample, layer, frame, :, y, x]
            if not given[sample, layer]
        ]
        assert loss[sample].item() == pytest.approx(sum(squares) / len(squares), rel=1e-4)
    assert loss[2] == 0
    loss.sum().backward()
    gradient = oracle.error.grad.view_as(error)
    counts = known & ~given[:, :, None, None, None]
    assert torch.equal((gradient != 0).all(3), counts) and (gradient[2] == 0).all()


def test_where_all_is_known_the_mask_changes_nothing():
    model, process, data = small_transformer(), VPrediction(make_scheduler("ddim")), batch(3)
    latents = data["latents"]
    known = torch.ones(*latents.shape[:3], *latents.shape[4:], dtype=torch.bool)
    plain = objective.layer_loss(model, process, **data)
    assert torch.allclose(objective.layer_loss(model, process, **data, known=known), plain)


def test_given_layers_enter_clean():
    process, data = VPrediction(make_scheduler("ddim")), batch()
    oracle = Oracle(data["latents"], 0.0)
    objective.layer_loss(oracle, process, **data)
    seen = oracle.seen.view_as(data["latents"])
    assert torch.equal(seen[0, 3], data["latents"][0, 3])
    noised = process.add_noise(data["latents"], data["noise"], data["timesteps"])
    assert torch.equal(seen[0, :3], noised[0, :3]) and torch.equal(seen[1], noised[1])


def test_a_mixed_batch_equals_its_samples():
    model, process, data = small_transformer(), VPrediction(make_scheduler("ddim")), batch(3)
    together = objective.layer_loss(model, process, **data)
    for i in range(3):
        one = {key: value[i : i + 1] for key, value in data.items()}
        alone = objective.layer_loss(model, process, **one)
        assert (alone[0] - together[i]).abs() < 1e-5


def test_bfloat16_network_gives_a_float32_loss():
    model = small_transformer().to(torch.bfloat16)
    loss = objective.layer_loss(model, VPrediction(make_scheduler("ddim")), **batch())
    assert loss.dtype == torch.float32 and torch.isfinite(loss).all()


def test_under_bfloat16_autocast():
    """How the trainer runs it on a GPU: float32 weights, autocast, checkpointing."""
    model = small_transformer()
    model.enable_gradient_checkpointing()
    plain = objective.layer_loss(model, VPrediction(make_scheduler("ddim")), **batch())
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.layer_loss(model, VPrediction(make_scheduler("ddim")), **batch())
    loss.mean().backward()
    assert loss.dtype == torch.float32 and torch.allclose(loss, plain, rtol=0.1)
    assert torch.isfinite(model.layer_embedding.given.grad).all()
