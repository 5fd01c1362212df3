"""v-prediction against diffusers' schedulers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerflow.model.cogvideox.from_base import make_scheduler
from layerflow.model.cogvideox.noise import VPrediction
from tests.support.model_kit import batch


@pytest.mark.parametrize("kind", ["ddim", "dpm"])
def test_noise_and_target_are_diffusers(kind: str) -> None:
    scheduler, data = make_scheduler(kind), batch()
    process = VPrediction(scheduler)
    x, n, t = data["latents"], data["noise"], data["timesteps"]
    noisy, target = process.add_noise(x, n, t), process.target(x, n, t)
    assert torch.allclose(noisy, scheduler.add_noise(x, n, t), atol=1e-6)
    assert torch.allclose(target, scheduler.get_velocity(x, n, t), atol=1e-6)
    assert torch.allclose(process.clean_of(noisy, target, t), x, atol=1e-5)


def test_terminal_noise_is_pure() -> None:
    process, data = VPrediction(make_scheduler("ddim")), batch()
    last = torch.tensor([999, 999])
    assert torch.equal(process.add_noise(data["latents"], data["noise"], last), data["noise"])


def test_each_step_is_fed_for_an_equal_part_of_the_numbers() -> None:
    process = VPrediction(make_scheduler("ddim"))
    fed = process.timesteps((np.arange(3000) + 0.5) / 3000)
    assert fed.dtype == np.int64 and fed.tolist() == np.repeat(np.arange(1000), 3).tolist()
    assert process.timesteps(np.array([0.0, np.nextafter(1, 0)])).tolist() == [0, 999]
