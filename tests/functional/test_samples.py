"""Estimators from samples: exact where the samples can be enumerated or counted by hand, within four standard errors elsewhere."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import digamma, gamma
from torch.distributions import Normal

from entreg.functional import SHANNON, categorical_entropy, gaussian_entropy, knn_entropy, min_entropy, parzen, renyi, sampled, score_function_bonus, tsallis

LOGITS = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def label(family) -> str:
    return f"{family.name}({family.order})"


@pytest.mark.parametrize("family", [SHANNON, renyi(0), renyi(0.5), renyi(2), tsallis(0.5), tsallis(3)], ids=label)
def test_sampled_is_the_transformed_mean_power(family):
    log_prob = torch.randn(7, 2, 3, dtype=torch.float64) - 2
    p, a = log_prob.exp().numpy(), family.order
    plain = -np.log(p).mean(0) if a == 1 else -np.log((p ** (a - 1)).mean(0)) / (a - 1)
    if family.name == "tsallis":
        plain = (1 - np.exp((1 - a) * plain)) / (a - 1)
    torch.testing.assert_close(sampled(log_prob, family), torch.from_numpy(plain))
    torch.testing.assert_close(sampled(log_prob.movedim(0, -1), family, dim=-1), torch.from_numpy(plain))


@pytest.mark.parametrize("family", [SHANNON, renyi(0), renyi(0.5), renyi(2), tsallis(2)], ids=label)
def test_sampled_over_samples_in_their_exact_proportions_is_the_entropy(family):
    probs = torch.tensor([0.5, 0.375, 0.125], dtype=torch.float64)
    samples = probs.repeat_interleave(torch.tensor([4, 3, 1])).log()
    torch.testing.assert_close(sampled(samples, family), categorical_entropy(probs.log(), family))


@pytest.mark.parametrize("offset", [1e-3, 1e-7, 1e-10, -1e-7, -1e-3])
def test_sampled_near_order_one_in_float32(offset):
    log_prob = torch.randn(1000) * 3 - 200
    spread = float(log_prob.var())
    assert abs(sampled(log_prob, renyi(1 + offset)) - sampled(log_prob)) < 3e-5 + abs(offset) * spread


def test_sampled_survives_extreme_log_probs_with_exact_gradient():
    log_prob = torch.tensor([-2000.0, -3000.0, 500.0], requires_grad=True)
    for order, truth in ((3.0, -500 + math.log(3) / 2), (0.5, 3000 - 2 * math.log(3))):
        value = sampled(log_prob, renyi(order))
        assert abs(value - truth) < 1e-3
        assert torch.isfinite(torch.autograd.grad(value, log_prob)[0]).all()
    double = torch.randn(5, dtype=torch.float64, requires_grad=True)
    for order in (0.5, 1, 1 + 1e-6, 3):
        torch.autograd.gradcheck(lambda lp, order=order: sampled(lp, renyi(order)), (double,))


def test_sampled_refuses_what_it_cannot_estimate():
    with pytest.raises(ValueError, match="finite orders"):
        sampled(torch.zeros(3), min_entropy)
    with pytest.raises(ValueError, match="no samples"):
        sampled(torch.zeros(0, 3))
    assert sampled(torch.zeros(3).half()).dtype == torch.float32


def expected_gradient(loss, draws: int) -> torch.Tensor:
    """E over all tuples of actions of grad loss(log p(actions)), by enumeration."""
    logits = LOGITS.clone().requires_grad_()
    log_p = logits.log_softmax(-1)
    total = torch.zeros(3, dtype=torch.float64)
    for actions in itertools.product(range(3), repeat=draws):
        taken = log_p[list(actions)]
        total += taken.detach().sum().exp() * torch.autograd.grad(loss(taken), logits, retain_graph=True)[0]
    return total


def entropy_gradient() -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(categorical_entropy(logits), logits)[0]


@pytest.mark.parametrize("draws", [2, 3])
def test_score_function_bonus_descends_to_the_exact_entropy_gradient(draws):
    torch.testing.assert_close(expected_gradient(lambda lp: score_function_bonus(lp).mean(), draws), -entropy_gradient())


@pytest.mark.parametrize("baseline", [0.0, -0.9, -categorical_entropy(LOGITS)], ids=["none", "number", "exact"])
def test_score_function_bonus_with_a_given_baseline_is_unbiased_from_one_draw(baseline):
    torch.testing.assert_close(expected_gradient(lambda lp: score_function_bonus(lp, baseline).mean(), 1), -entropy_gradient())


def test_naive_minus_log_prob_has_no_expected_gradient_and_a_mean_with_itself_shrinks_it():
    assert expected_gradient(lambda lp: lp.mean(), 2).abs().max() < 1e-12
    assert entropy_gradient().abs().max() > 0.05
    shrunk = expected_gradient(lambda lp: score_function_bonus(lp, lp.mean()).mean(), 2)
    torch.testing.assert_close(shrunk, -entropy_gradient() / 2)


def test_score_function_bonus_samples_along_dim_and_needs_two():
    log_prob = torch.randn(4, 3)
    torch.testing.assert_close(score_function_bonus(log_prob, dim=1), score_function_bonus(log_prob.T).T)
    with pytest.raises(ValueError, match="at least 2"):
        score_function_bonus(torch.zeros(1))


def test_parzen_equals_the_double_sum():
    x, h = torch.randn(2, 5, 3, dtype=torch.float64), 0.7
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    kernel = Normal(torch.tensor(0.0, dtype=torch.float64), math.sqrt(2) * h)
    plain = torch.stack([torch.stack([kernel.log_prob(x[b, i] - x[b, j]).sum().exp() for i, j in pairs]).mean() for b in range(2)])
    torch.testing.assert_close(parzen(x, h), -plain.log())


def test_parzen_of_gaussian_samples_is_the_entropy_of_the_blurred_gaussian():
    sigma, h = 1.5, 0.4
    potential = torch.exp(-parzen(sigma * torch.randn(200, 60, 2, dtype=torch.float64), h))  # unbiased for the integral of p^2
    truth = torch.exp(-gaussian_entropy(torch.full((2,), 0.5 * math.log(sigma**2 + h**2), dtype=torch.float64), renyi(2)))
    assert abs(potential.mean() - truth) < 4 * potential.std() / math.sqrt(200)
    assert potential.std() / math.sqrt(200) < 0.02 * truth


def test_parzen_gradient_lower_bound_and_refusals():
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = parzen(x, 0.5)
    value.backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad[2, 0] > 0  # pushing the outlier further out raises the entropy
    assert abs(parzen(torch.zeros(4, 2), 0.5) - math.log(4 * math.pi * 0.25)) < 1e-6
    torch.autograd.gradcheck(lambda y: parzen(y, 0.8), (torch.randn(4, 2, dtype=torch.float64, requires_grad=True),))
    for bandwidth in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="bandwidth"):
            parzen(torch.zeros(3, 1), bandwidth)
    with pytest.raises(ValueError, match="at least 2 points"):
        parzen(torch.zeros(1, 1), 1.0)


@pytest.mark.parametrize("family", [SHANNON, renyi(0.5), renyi(2), tsallis(1.5)], ids=label)
@pytest.mark.parametrize("k", [2, 4])
def test_knn_equals_the_published_formula(k, family):
    x, a = torch.randn(9, 3, dtype=torch.float64), family.order
    n, d = x.shape
    points = x.numpy()
    rho = np.array([sorted(np.linalg.norm(points - point, axis=1))[k] for point in points])
    ball = math.pi ** (d / 2) / gamma(d / 2 + 1)
    if a == 1:
        plain = digamma(n) - digamma(k) + math.log(ball) + d * np.log(rho).mean()
    else:
        constant = (gamma(k) / gamma(k + 1 - a)) ** (1 / (1 - a))
        power = (((n - 1) * constant * ball * rho**d) ** (1 - a)).mean()
        plain = math.log(power) / (1 - a) if family.name == "renyi" else (1 - power) / (a - 1)
    assert abs(knn_entropy(x, k, family) - plain) < 1e-10
    torch.testing.assert_close(knn_entropy(torch.stack([x, 2 * x]), k)[1], knn_entropy(x, k) + d * math.log(2))


@pytest.mark.parametrize("order", [0.7, 1, 2])
def test_knn_of_gaussian_samples(order):
    runs, n = 40, 400
    estimates = knn_entropy(2.0 * torch.randn(runs, n, 1), 3, renyi(order))
    truth = gaussian_entropy(torch.tensor([math.log(2.0)]), renyi(order))
    bias = 0.02 if order >= 1 else 0.06  # tails: the estimator's own bias at n = 400, largest where small densities count
    assert abs(estimates.mean() - truth) < bias + 4 * estimates.std() / math.sqrt(runs)


def test_knn_near_order_one_is_shannons_with_log_n():
    x = torch.randn(30, 2, dtype=torch.float64)
    limit = knn_entropy(x, 3) - digamma(30) + math.log(29)
    for offset in (1e-3, 1.01e-4, 0.99e-4, 1e-6, 1e-10, -1e-6):
        assert abs(knn_entropy(x, 3, renyi(1 + offset)) - limit) < 1e-8 + 3 * abs(offset)
    assert abs(knn_entropy(x, 3, renyi(1 + 1.001e-4)) - knn_entropy(x, 3, renyi(1 + 0.999e-4))) < 1e-6  # where C_k changes its form


def test_knn_keeps_the_digits_of_points_far_from_the_origin():
    x = torch.rand(100, 2) * 64
    moved = (x.round(decimals=1) * 1024).round() / 1024 + torch.rand(100, 2).mul(64).round() / 64  # a grid that float32 holds at both places
    assert abs(knn_entropy(moved + 4096, 3) - knn_entropy(moved, 3)) < 1e-4


def test_knn_gradient_and_refusals():
    torch.autograd.gradcheck(lambda y: knn_entropy(y, 2, renyi(2)), (torch.randn(6, 2, dtype=torch.float64, requires_grad=True),))
    x = torch.randn(5, 2)
    for k in (0, 5):
        with pytest.raises(ValueError, match="legal is 1 to 4"):
            knn_entropy(x, k)
    for family in (renyi(0), renyi(3), min_entropy):
        with pytest.raises(ValueError, match=r"orders in \(0, 3\)"):
            knn_entropy(x, 2, family)
    with pytest.raises(ValueError, match="coincide"):
        knn_entropy(torch.cat([x, x]), 1, renyi(1.5))
    assert torch.isfinite(knn_entropy(torch.cat([x, x]), 2))
    x[1, 0] = math.nan
    assert all(bool(knn_entropy(x, k).isnan()) for k in (1, 3, 4))
