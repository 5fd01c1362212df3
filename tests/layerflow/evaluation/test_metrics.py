"""Layer metrics and trivial baselines against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from layerflow.evaluation import baselines, metrics


def matte(*rows: str) -> np.ndarray:
    """One frame from digits, '0'..'9' meaning ninths of opaque."""
    return np.array([[[int(c) / 9 for c in row] for row in rows]])


def test_mean_errors_by_hand() -> None:
    truth = np.zeros((2, 2, 2), np.uint8)
    predicted = truth.copy()
    predicted[0, 0, 0] = 255
    predicted[1, 1, 1] = 51  # 0.2
    assert metrics.alpha_mad(predicted, truth) == pytest.approx(1000 * 1.2 / 8)
    assert metrics.alpha_mse(predicted, truth) == pytest.approx(1000 * 1.04 / 8)
    assert metrics.alpha_sad(predicted, truth) == pytest.approx((1.0 + 0.2) / 2 / 1000)


def test_iou_by_hand() -> None:
    predicted = matte("990", "000")
    truth = matte("099", "000")
    assert metrics.alpha_iou(predicted, truth) == pytest.approx(1 / 3)
    assert metrics.alpha_iou(truth, truth) == 1.0
    assert metrics.alpha_iou(truth * 0, truth) == 0.0
    assert metrics.alpha_iou(truth * 0, truth * 0) == 1.0


def test_dtssd_sees_flicker_and_not_a_constant_error() -> None:
    truth = np.zeros((3, 4, 4))
    constant = truth + 0.5
    assert metrics.alpha_dtssd(constant, truth) == 0.0
    flicker = truth.copy()
    flicker[1] = 0.5
    assert metrics.alpha_dtssd(flicker, truth) == pytest.approx(100 * 0.5)
    late = truth.copy()
    late[2, 0, 0] = 0.8  # pairs: 0 and sqrt(0.64 / 16) = 0.2
    assert metrics.alpha_dtssd(late, truth) == pytest.approx(100 * 0.2 / 2)
    assert np.isnan(metrics.alpha_dtssd(truth[:1], truth[:1]))


def test_gradient_filter_has_unit_energy_and_known_step_response() -> None:
    smooth, slope = metrics._gaussian_derivative(1.4)
    assert np.linalg.norm(np.outer(smooth, slope)) == pytest.approx(1.0)
    step = np.zeros((1, 41, 41))
    step[:, :, 20:] = 1.0
    # A vertical edge: the response of column x is sum(smooth) times the taps that overlap it.
    taps = np.array([abs(slope[: i + 1].sum()) for i in range(len(slope) - 1)]) * smooth.sum()
    expected = 41 * (taps**2).sum() / 1000
    assert metrics.alpha_grad(step, step * 0) == pytest.approx(expected)
    assert metrics.alpha_grad(step, step) == 0.0
    assert metrics.alpha_grad(step * 0.5, step) == pytest.approx(expected / 4)


def test_connectivity_by_hand() -> None:
    truth = matte("99009", "99009")  # the right bar is not connected to the left block
    assert metrics.alpha_conn(truth, truth) == 0.0
    left = matte("99000", "99000")
    # Source region: the left block, at every level. Right bar: phi(truth) = 0, phi(left) = 1.
    assert metrics.alpha_conn(left, truth) == pytest.approx(2 / 1000)
    faint = np.zeros((1, 2, 5))
    faint[:, :, :2] = 0.9
    solid = np.zeros((1, 2, 5))
    solid[:, :, :2] = 1.0
    # Level reached by both: 0.9, so d = 0 and 0.1, both under the tolerance of 0.15.
    assert metrics.alpha_conn(faint, solid) == 0.0
    faint[:, :, :2] = 0.7
    # Level 0.7: d = 0 and 0.3, four pixels.
    assert metrics.alpha_conn(faint, solid) == pytest.approx(4 * 0.3 / 1000)


def test_connectivity_is_four_neighbour() -> None:
    diagonal = matte("990", "990", "009")
    block = matte("990", "990", "000")
    assert metrics.alpha_conn(block, diagonal) == pytest.approx(1 / 1000)


def test_recomposition_error_by_hand() -> None:
    colour = np.full((1, 1, 2, 3), 200, np.uint8)
    behind = np.full((1, 1, 2, 3), 100, np.uint8)
    alpha = np.array([[[255, 0]]], np.uint8)
    blended = np.array([[[[200] * 3, [106] * 3]]], np.uint8)
    assert metrics.recomposition_error(colour, alpha, behind, blended) == pytest.approx(3.0)


def test_masked_psnr_by_hand() -> None:
    truth = np.zeros((1, 1, 2, 3), np.uint8)
    predicted = truth.copy()
    predicted[0, 0, 0] = 51
    mask = np.array([[[True, False]]])
    assert metrics.masked_psnr(predicted, truth, mask) == pytest.approx(20 * np.log10(5))
    assert metrics.masked_psnr(predicted, truth, ~mask) == float("inf")
    assert np.isnan(metrics.masked_psnr(predicted, truth, mask & ~mask))


def test_ssim_by_hand() -> None:
    """Of constant pictures only the means remain: (2ab + C1) / (a^2 + b^2 + C1)."""
    a, b, c1 = 100.0, 140.0, (0.01 * 255) ** 2
    left = np.full((2, 16, 16, 3), 100, np.uint8)
    right = np.full((2, 16, 16, 3), 140, np.uint8)
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert metrics.masked_ssim(left, right) == pytest.approx(expected)
    assert metrics.masked_ssim(left, left) == pytest.approx(1.0)
    hole = np.zeros((2, 16, 16), bool)
    assert np.isnan(metrics.masked_ssim(left, right, hole))
    hole[0, 2, 2] = True
    right[1] = 0  # not in the hole
    assert metrics.masked_ssim(left, right, hole) == pytest.approx(expected)


def test_ssim_equals_an_independent_one() -> None:
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (2, 1, 24, 24, 3)).astype(np.uint8)
    right = (0.7 * left + 0.3 * right).astype(np.uint8)
    theirs = structural_similarity(
        left[0], right[0], channel_axis=2, data_range=255, gaussian_weights=True,
        use_sample_covariance=False, full=True,
    )[1]  # fmt: skip
    inner = np.zeros((1, 24, 24), bool)
    inner[:, 6:18, 6:18] = True  # borders are extended differently
    assert metrics.masked_ssim(left, right, inner) == pytest.approx(
        theirs[6:18, 6:18].mean(), abs=1e-6
    )


def test_dynamic_degree_by_hand() -> None:
    """64x64: a pair moves above 6 * 64 / 256 = 1.5 px; of 16 frames 4 pairs must move."""
    flows = np.zeros((15, 64, 64, 2))
    fastest = flows.reshape(15, -1, 2)
    fastest[:4, :204, 0] = 1.6  # 5 % of 4096 pixels is 204
    assert metrics.dynamic_from_flows(flows)
    assert not metrics.dynamic_from_flows(flows, fps=4.0)  # 0.8 px at 8 frames a second
    fastest[3] = 0
    assert not metrics.dynamic_from_flows(flows)
    fastest[3, :100, 1] = 1.6  # half of the fastest 5 %
    assert not metrics.dynamic_from_flows(flows)


def test_dynamic_degree_of_pictures() -> None:
    texture = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    texture = np.repeat(np.repeat(texture, 4, 0), 4, 1)[:64]
    moving = np.stack([texture[:, 4 * t : 4 * t + 64] for t in range(8)])
    assert metrics.dynamic_degree(moving) == 1.0
    assert metrics.dynamic_degree(moving[:1].repeat(8, 0)) == 0.0
    assert metrics.dynamic_degree(moving[:1]) == 0.0


def test_drift_is_net_motion() -> None:
    alpha = np.zeros((4, 8, 16), np.uint8)
    for t, x in enumerate((2, 9, 3, 8)):  # jitters, and ends 6 pixels to the right
        alpha[t, 3:5, x] = 255
    assert metrics.drift(alpha) == pytest.approx(2.0)
    assert metrics.drift(alpha[:1]) == 0.0
    alpha[-1] = 0
    assert metrics.drift(alpha) == 0.0
    assert np.allclose(metrics.centroids(alpha)[0], (3.5, 2.0))


@pytest.mark.parametrize("name", ["mad", "mse", "sad", "grad", "conn", "dtssd", "iou"])
def test_shape_mismatch_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"\[1, 2, 2\] and \[1, 2, 3\]"):
        getattr(metrics, f"alpha_{name}")(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)))


def test_alpha_metrics_has_every_measure_and_takes_uint8() -> None:
    truth = (matte("099", "009") * 255).round().astype(np.uint8)
    same = metrics.alpha_metrics(truth, truth / 255.0)
    assert set(same) == {"mad", "mse", "sad", "grad", "conn", "dtssd", "iou"}
    assert same["mad"] == pytest.approx(0.0) and same["iou"] == 1.0
    with pytest.raises(ValueError, match="uint8 or float"):
        metrics.alpha_mad(truth.astype(int), truth)


def scene(seed: int, colour: tuple[int, int, int], *, moving: bool) -> baselines.Pair:
    """A 6x6 square of one colour on grey noise."""
    rng = np.random.default_rng(seed)
    still = rng.integers(90, 160, (1, 24, 24, 1)).repeat(3, 3)
    blended = still.repeat(4, 0).astype(np.uint8)
    alpha = np.zeros((4, 24, 24), np.uint8)
    for t in range(4):
        x = 6 * t if moving else 9
        alpha[t, 9:15, x : x + 6] = 255
    blended[alpha > 0] = colour
    return blended, alpha


def test_colour_baseline_finds_a_vivid_subject() -> None:
    training = [scene(i, (255, 0, 0), moving=False) for i in range(4)]
    scores = baselines.trivial_baselines(training, [scene(9, (255, 0, 0), moving=False)])
    assert scores["saturation"] == 1.0
    assert baselines.best_colour(scores)[1] == 1.0
    assert scores["empty matte"] == 0.0
    assert scores["mean training matte"] == 1.0  # it never moves
    assert scores[baselines.MOTION] < 0.2


def test_motion_baseline_finds_a_moving_grey_subject() -> None:
    training = [scene(i, (40, 40, 40), moving=True) for i in range(4)]
    held_out = [scene(9, (40, 40, 40), moving=True)]
    scores = baselines.trivial_baselines(training, held_out)
    assert scores[baselines.MOTION] == 1.0
    assert scores["saturation"] < 0.5
    assert scores["mean training matte"] == pytest.approx(0.25)


def test_thresholds_come_from_the_training_clips() -> None:
    training = [scene(i, (255, 255, 255), moving=False) for i in range(3)]
    scores = baselines.trivial_baselines(training, [scene(9, (0, 0, 0), moving=False)])
    assert scores["luma"] < 0.2  # learnt "brighter than", but the held-out subject is dark


@pytest.mark.parametrize("levels", [7, 256])
def test_best_cut_equals_trying_every_threshold(levels: int) -> None:
    rng = np.random.default_rng(levels)
    values = (rng.integers(0, levels, (5, 2, 6, 6)) / levels).astype(np.float32)
    truths = rng.random(values.shape) < 0.2 + 0.6 * (values > 0.6)
    truths[0] = False
    cut = baselines.best_cut(values, truths, "x")
    found = baselines._mean_iou(cut({"x": values}), truths)
    grid = np.quantile(values, np.linspace(0.01, 0.99, baselines.QUANTILES)).astype(np.float32)
    tried = [
        baselines._mean_iou(baselines.Cut("x", float(t), sign)({"x": values}), truths)
        for t in grid
        for sign in (1, -1)
    ]
    assert found == pytest.approx(max(tried))


def test_baselines_need_equal_shapes() -> None:
    one = scene(0, (255, 0, 0), moving=False)
    short = (one[0][:2], one[1][:2])
    with pytest.raises(ValueError, match="one size and length"):
        baselines.trivial_baselines([one, short], [one])
    with pytest.raises(ValueError, match="at least one"):
        baselines.trivial_baselines([], [one])
