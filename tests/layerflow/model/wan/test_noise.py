"""Flow matching: what is mixed, what is predicted, and which times are drawn."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, UniPCMultistepScheduler

from layerflow.model.base import scheduler_of
from layerflow.model.wan.base import WAN
from layerflow.model.wan.from_base import make_scheduler
from layerflow.model.wan.noise import FlowMatching


def test_noisy_latents_lie_on_the_line_and_the_target_is_its_direction() -> None:
    process = FlowMatching()
    clean, noise, t = torch.full((2, 3), 4.0), torch.full((2, 3), -1.0), torch.tensor([0.0, 250.0])
    noisy = process.add_noise(clean, noise, t)
    assert noisy[:, 0].tolist() == [4.0, 0.75 * 4.0 - 0.25]
    target = process.target(clean, noise, t)
    assert target.unique().tolist() == [-5.0]
    assert torch.allclose(process.clean_of(noisy, target, t), clean)


def test_uniform_draws_are_shifted_by_the_released_formula() -> None:
    u = np.array([0.0, 0.25, 0.5, 0.999])
    assert FlowMatching().timesteps(u) == pytest.approx(1000 * u)
    expected = [1000 * 3 * s / (1 + 2 * s) for s in u]
    assert FlowMatching(shift=3.0).timesteps(u) == pytest.approx(expected)


def test_logit_normal_draws_are_the_logistic_function_of_normal_quantiles() -> None:
    u = [0.02, 0.3, 0.5, 0.97]
    expected = [1000 / (1 + np.exp(-NormalDist().inv_cdf(q))) for q in u]
    drawn = FlowMatching(density="logit-normal").timesteps(np.array(u))
    assert drawn == pytest.approx(expected)
    edges = FlowMatching(density="logit-normal").timesteps(np.array([0.0, 1 - 2**-53]))
    assert 0 < edges[0] < 10 and 990 < edges[1] < 1000


@pytest.mark.parametrize("density", ["uniform", "logit-normal"])
def test_an_expert_draws_from_its_part_alone_with_the_density_of_the_whole(density: str) -> None:
    u = (np.arange(4000) + 0.5) / 4000
    whole = FlowMatching(shift=3.0, density=density).timesteps(u)
    high = FlowMatching(shift=3.0, density=density, span=(0.875, 1.0)).timesteps(u)
    low = FlowMatching(shift=3.0, density=density, span=(0.0, 0.875)).timesteps(u)
    assert high.min() >= 875 - 1e-6 and low.max() <= 875 + 1e-6
    shares = [0.1, 0.5, 0.9]
    assert np.quantile(high, shares) == pytest.approx(
        np.quantile(whole[whole > 875], shares), abs=1
    )
    assert np.all(np.diff(low) > 0)


def test_a_scheduler_on_disk_says_how_a_training_draws(tmp_path: Path) -> None:
    make_scheduler("unipc", 5.0, "logit-normal", (0.0, 0.9)).save_pretrained(tmp_path / "scheduler")
    process = WAN.noise(WAN.load_scheduler(tmp_path))
    assert vars(process) == vars(FlowMatching(1000, 5.0, "logit-normal", (0.0, 0.9)))
    stock = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    assert vars(WAN.noise(stock)) == vars(FlowMatching(1000, 3.0))


def test_a_scheduler_of_another_process_is_refused(tmp_path: Path) -> None:
    CogVideoXDDIMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match="CogVideoXDDIMScheduler is none of"):
        scheduler_of(tmp_path, WAN.schedulers)
    with pytest.raises(ValueError, match="no flow matching"):
        WAN.noise(UniPCMultistepScheduler())
    for wrong in ({"density": "cauchy"}, {"shift": 0.0}, {"span": (0.5, 0.5)}):
        with pytest.raises(ValueError, match="must be"):
            FlowMatching(**wrong)  # type: ignore[arg-type]
