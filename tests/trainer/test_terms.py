"""Times by density, and the loss's weight and terms, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from layerflow.clip import ALPHA, BACKGROUND, BLENDED, FOREGROUND, LAYERS
from layerflow.layer_set import layer_set
from layerflow.model.autoencoder import BlockDCTAutoencoder
from layerflow.model.cogvideox.noise import VPrediction
from layerflow.model.noise import Density
from layerflow.model.objective import Prediction
from layerflow.model.wan.noise import FlowMatching
from manifests.train_stage import Stage
from tests.support.trainer_kit import make_manifest, make_model, same, weights, whole_and_killed
from trainer import loop
from trainer.recipe.terms import Terms, alpha_gradient, drawn_times, levels, stage_terms

CPU = torch.device("cpu")
RGBA = layer_set("rgba")


def v_prediction() -> VPrediction:
    return VPrediction(
        CogVideoXDDIMScheduler(
            prediction_type="v_prediction", snr_shift_scale=3.0, rescale_betas_zero_snr=True
        )
    )


def stage(**changes: Any) -> Stage:
    fields = {"name": "s", "steps": 9, "lr": 1.0, "trains": "full", "mixture": [{"latents": "v"}]}
    return Stage.model_validate(fields | changes)


# ---- times ------------------------------------------------------------------------------------


def test_a_stage_draws_its_own_density_with_the_shift_of_its_base() -> None:
    u = np.array([0.1, 0.5, 0.8])
    said = {"timesteps": {"density": "logit-normal", "mean": 0.4, "std": 1.5}}
    share = [1 / (1 + np.exp(-(0.4 + 1.5 * NormalDist().inv_cdf(q)))) for q in u]
    drawn = drawn_times(v_prediction(), stage(**said))["timesteps"](u)
    assert drawn.dtype == np.int64 and drawn.tolist() == [int(1000 * s) for s in share]
    flow = FlowMatching(shift=3.0, density="logit-normal")
    assert drawn_times(flow, stage(**said))["timesteps"](u) == pytest.approx(
        [1000 * 3 * s / (1 + 2 * s) for s in share]
    )
    plain = stage(timesteps={"density": "uniform"})
    assert drawn_times(flow, plain)["timesteps"](u) == pytest.approx(
        [1000 * 3 * s / (1 + 2 * s) for s in u]
    )
    as_before = stage(timesteps={"min_snr": 5})
    assert drawn_times(flow, as_before)["timesteps"](u) == pytest.approx(
        flow.timesteps(u), rel=0, abs=0
    )


def test_a_density_may_be_that_of_some_tasks() -> None:
    u = np.array([0.1, 0.5, 0.8])
    noisy = {"density": "logit-normal", "mean": 1.5}
    tasks = {"generate": 0.5, "decompose": 0.5}
    flow = FlowMatching(shift=3.0, density="uniform")
    drawn = drawn_times(flow, stage(tasks=tasks, timesteps=noisy | {"tasks": ["decompose"]}))
    assert drawn["timesteps"](u) == pytest.approx(flow.timesteps(u), rel=0, abs=0)
    every = drawn_times(flow, stage(tasks=tasks, timesteps=noisy))["timesteps"]
    assert list(drawn["of_tasks"]) == ["decompose"]
    assert drawn["of_tasks"]["decompose"](u) == pytest.approx(every(u), rel=0, abs=0)
    assert (every(u) > flow.timesteps(u)).all()
    with pytest.raises(ValueError, match="the stage has no task 'fg2bg'"):
        stage(tasks=tasks, timesteps=noisy | {"tasks": ["fg2bg"]})
    with pytest.raises(ValueError, match="need the density that is theirs"):
        stage(tasks=tasks, timesteps={"tasks": ["decompose"]})


def test_a_density_and_its_inverse_agree() -> None:
    density, u = Density("logit-normal", -0.5, 0.7), torch.linspace(0.01, 0.99, 9).double()
    torch.testing.assert_close(density.below(density.quantile(u)), u)
    high = FlowMatching(shift=3.0, span=(0.875, 1.0))
    drawn = high.timesteps((np.arange(500) + 0.5) / 500, density)
    whole = FlowMatching(shift=3.0).timesteps((np.arange(40000) + 0.5) / 40000, density)
    assert drawn.min() >= 875 - 1e-6
    assert np.median(drawn) == pytest.approx(np.median(whole[whole > 875]), abs=0.5)


# ---- weight -----------------------------------------------------------------------------------


def test_min_snr_weights_are_those_of_its_formula() -> None:
    process, gamma = v_prediction(), 5.0
    t = torch.tensor([0, 100, 500, 900, 999])
    abar = process.table.double()[t]
    snr = abar / (1 - abar)
    made: Any = Prediction(process, *[torch.zeros(5)] * 3, t, *[None] * 3)  # type: ignore[arg-type]
    got = Terms(RGBA, min_snr=gamma)(torch.full((5,), 2.0), made)
    expected = 2.0 * snr.clamp(max=gamma) / (snr + 1)
    assert snr[0] > gamma > snr[2] and expected[-1] == 0
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-7)

    s = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    made = Prediction(FlowMatching(), *[torch.zeros(3)] * 3, 1000 * s, *[None] * 3)  # type: ignore[arg-type]
    got = Terms(RGBA, min_snr=gamma)(torch.ones(3), made)
    expected = torch.tensor([5 * 0.1**2, 0.6**2, 0.1**2], dtype=torch.float64)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)


def test_the_weighted_error_is_that_of_clean_latents_times_the_capped_ratio() -> None:
    """By way of clean latents, which the weight's formula does not use."""
    draw = torch.Generator().manual_seed(0)
    shape, gamma = (3, 4, 1, 2, 2, 2), 5.0
    clean, noise, said = (torch.randn(shape, generator=draw) for _ in range(3))
    given = torch.zeros(3, 4, dtype=torch.bool)
    for process, t in ((v_prediction(), torch.tensor([10, 400, 800])),
                       (FlowMatching(), torch.tensor([30.0, 500.0, 930.0]))):  # fmt: skip
        made = Prediction(process, clean, noise, said, t, given, LAYERS, None)
        plain = (said - process.target(clean, noise, t)).square().flatten(1).mean(1)
        signal, _, _ = levels(process, t, plain)
        spread = process.add_noise(torch.zeros(3), torch.ones(3), t)
        x0 = (made.cleaned() - clean).square().flatten(1).mean(1)
        expected = ((signal / spread) ** 2).clamp(max=gamma) * x0
        got = Terms(RGBA, min_snr=gamma)(plain, made)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


# ---- terms ------------------------------------------------------------------------------------


def flow_made(clean: torch.Tensor, wrong: torch.Tensor, **changes: Any) -> Prediction:
    """At s = 0.5 a prediction whose clean latents are off by `wrong`: flow's clean latents are
    noisy - s * prediction."""
    noise = torch.ones_like(clean)
    count = len(clean)
    given = torch.zeros(count, clean.shape[1], dtype=torch.bool)
    fields: dict[str, Any] = {"given": given, "layers": LAYERS, "known": None} | changes
    said = (noise - clean) - wrong / 0.5
    return Prediction(
        FlowMatching(), clean, noise, said, torch.full((count,), 500.0, dtype=torch.float64),
        **fields,
    )  # fmt: skip


def test_alpha_gradient_by_hand() -> None:
    clean, wrong = torch.randn(2, 4, 1, 2, 2, 3), torch.zeros(2, 4, 1, 2, 2, 3)
    a = LAYERS.index(ALPHA)
    wrong[0, a, 0, 0] = torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 4.0]])
    wrong[0, LAYERS.index(BLENDED)] = torch.rand(1, 2, 2, 3)  # other layers do not count
    wrong[1, a] = 7.0  # an even error has no gradient
    down = (1 + 9 + 1) / 6  # of two channels, one is right
    right = (4 + 0 + 0 + 16) / 8
    got = alpha_gradient(flow_made(clean, wrong), RGBA)
    torch.testing.assert_close(got, torch.tensor([down + right, 0.0]), rtol=1e-5, atol=1e-5)
    given = torch.zeros(2, 4, dtype=torch.bool)
    given[0, a] = True
    assert alpha_gradient(flow_made(clean, wrong, given=given), RGBA)[0] == 0
    known = torch.ones(2, 4, 1, 2, 3, dtype=torch.bool)
    known[0, a, 0, 0, 0] = False  # pairs with that cell are left out
    got = alpha_gradient(flow_made(clean, wrong, known=known), RGBA)
    assert got[0] == pytest.approx((9 + 1) / 4 + (0 + 0 + 16) / 6, rel=1e-5)


def test_recomposition_by_hand() -> None:
    """Flat blocks: the decoded layers are the numbers that were encoded."""
    codec = BlockDCTAutoencoder(block_size=2, luma_bands=4, chroma_bands=4, scaling_factor=0.6)

    def latents(**values: float) -> torch.Tensor:
        pixels = torch.stack(
            [torch.full((3, 1, 2, 2), values[name]) for name in LAYERS]
        )  # [4, 3, T, H, W]
        return (codec.encode(pixels).latent_dist.mean * 0.6).transpose(1, 2)[None]

    truth = {FOREGROUND: 0.2, ALPHA: 0.5, BACKGROUND: -0.4, BLENDED: 0.1}
    made = {FOREGROUND: 0.3, ALPHA: -0.5, BACKGROUND: -0.8, BLENDED: 0.4}
    clean = latents(**truth)
    terms = Terms(RGBA, recomposition=2.0, codec=codec)
    residual = {
        name: v[BLENDED] - (v[FOREGROUND] + (1 - (v[ALPHA] + 1) / 2) * v[BACKGROUND])
        for name, v in (("truth", truth), ("made", made))
    }
    expected = (residual["made"] - residual["truth"]) ** 2
    prediction = flow_made(clean, latents(**made) - clean)
    assert terms.recomposed(prediction)[0] == pytest.approx(expected, rel=1e-4)
    whole = terms(torch.tensor([1.0]), prediction)
    assert whole[0] == pytest.approx(1.0 + 2.0 * 0.5**2 * expected, rel=1e-4)  # signal is 0.5
    assert terms.recomposed(flow_made(clean, torch.zeros_like(clean)))[0] < 1e-10
    prediction.predicted.requires_grad_(True)
    terms(torch.tensor([1.0]), prediction).sum().backward()
    assert prediction.predicted.grad is not None and prediction.predicted.grad.abs().sum() > 0


def test_terms_that_a_model_cannot_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest(tmp_path)
    asked = manifest.stages[0].model_copy(update={"loss": stage(loss={"recomposition": 1}).loss})
    assert stage_terms(manifest, asked, CPU) is not None
    assert stage_terms(manifest, manifest.stages[0], CPU) is None
    rgb = manifest.model_copy(update={"model": str(make_model(tmp_path / "rgb", of="rgb"))})
    with pytest.raises(ValueError, match="its terms need a matte"):
        stage_terms(rgb, asked, CPU)
    monkeypatch.setattr("trainer.recipe.terms.load_autoencoder", lambda folder: torch.nn.Identity())
    with pytest.raises(ValueError, match=r"decoding is linear \(BlockDCTAutoencoder\), not Ident"):
        stage_terms(manifest, asked, CPU)


def test_a_run_with_all_of_it_trains_and_resumes_exactly(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, save_every=2)
    more = {
        "timesteps": {"density": "logit-normal", "min_snr": 5},
        "loss": {"alpha_gradient": 0.1, "recomposition": 0.1},
        "mask": "known",
    }
    base = Stage.model_validate(manifest.stages[0].model_dump() | more)
    # the kit's model has 4 channels, and its autoencoder as many: 2 luma and 1 of each chroma
    manifest = manifest.model_copy(update={"stages": [base]})

    whole, killed = whole_and_killed(manifest, tmp_path, 2)
    assert same(weights(killed / "export"), weights(whole / "export"))
    plain = manifest.model_copy(update={"stages": [base.model_copy(update={"loss": None})]})
    with pytest.raises(ValueError, match=r"loss\.alpha_gradient: 0\.1 -> None"):
        loop.train(plain, plain.out, log=lambda line: None)
