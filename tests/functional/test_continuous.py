"""Gaussian and squashed Gaussian entropies against scipy quadrature in float64, and the laws they obey."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from entreg import reference
from entreg.functional import (
    SHANNON,
    gaussian_entropy,
    gaussian_kl,
    min_entropy,
    multivariate_gaussian_entropy,
    renyi,
    tanh_gaussian_entropy,
    tanh_log_det,
    tsallis,
)
from entreg.functional.continuous import squashed_mean, squashed_mode

MEANS = (0.0, 0.3, -1.0, 1.8, 4.0)
STDS = (0.007, 0.05, 0.35, 0.75, 0.9, 1.3, 2.2, 4.0, 7.4)
# float32 numbers, so that both precisions and the oracle see the same input
MEAN, LOG_STD = (torch.tensor(grid.ravel(), dtype=torch.float32).double() for grid in np.meshgrid(MEANS, np.log(STDS), indexing="ij"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def label(family) -> str:
    return f"{family.name}({family.order})"


@cache
def oracle(mean: float, log_std: float, order: float) -> float:
    """Rényi entropy of tanh(N(mean, std^2)) by adaptive quadrature over u, cut at its peaks and at 0."""
    std = math.exp(log_std)

    def log_density(u):
        return -0.5 * ((u - mean) / std) ** 2 - log_std - 0.5 * math.log(2 * math.pi) + 2 * np.logaddexp(u, -u) - 2 * math.log(2)

    def exponent(u):  # of p_y^order dy
        return (order - 1) * log_density(u) - 0.5 * ((u - mean) / std) ** 2 - log_std - 0.5 * math.log(2 * math.pi)

    wide = 12 * std / math.sqrt(min(order, 1)) + 2 * std**2 * abs(order - 1) / order + 30
    grid = np.linspace(-wide - abs(mean), wide + abs(mean), 200_001)
    for _ in range(2):
        top = exponent(grid).max()
        alive = grid[exponent(grid) > top - 45]
        grid = np.linspace(alive[0] - (grid[1] - grid[0]), alive[-1] + (grid[1] - grid[0]), 20_001)
    edges = np.unique(np.concatenate([np.linspace(grid[0], grid[-1], 9), [0.0] if grid[0] < 0 < grid[-1] else []]))

    def integral(f):
        return sum(quad(f, a, b, epsabs=1e-13, epsrel=1e-11, limit=200)[0] for a, b in pairwise(edges))

    if order == 1:
        return -integral(lambda u: math.exp(exponent(u)) * log_density(u))
    if abs(order - 1) < 1e-3:
        return -math.log1p(
            integral(lambda u: math.exp(-0.5 * ((u - mean) / std) ** 2) / std / math.sqrt(2 * math.pi) * math.expm1((order - 1) * log_density(u)))
        ) / (order - 1)
    return (top + math.log(integral(lambda u: math.exp(exponent(u) - top)))) / (1 - order)


def exact(order: float) -> torch.Tensor:
    return torch.tensor([oracle(float(m), float(s), order) for m, s in zip(MEAN, LOG_STD, strict=True)], dtype=torch.float64)


def squashed(order: float, dtype: torch.dtype) -> torch.Tensor:
    return tanh_gaussian_entropy(MEAN.to(dtype)[:, None], LOG_STD.to(dtype)[:, None], renyi(order))


def test_squashed_shannon_in_float32_is_within_2e6_of_quadrature():
    error = (squashed(1, torch.float32).double() - exact(1)).abs()
    assert error.max() < 2e-6


@pytest.mark.parametrize("order", [0.5, 0.7, 0.94, 0.96, 1.04, 1.06, 2, 3, 5])
def test_squashed_renyi_over_the_validated_orders(order):
    truth = exact(order)
    assert (squashed(order, torch.float64) - truth).abs().max() < 2e-7
    # one float32 number of 80 nats is itself only within 4e-6
    assert ((squashed(order, torch.float32).double() - truth).abs() / torch.clamp(3e-7 * truth.abs(), min=1e-5)).max() < 1


@pytest.mark.parametrize(("order", "tolerance"), [(0.01, 1e-8), (0.2, 1e-8), (10, 1e-6), (50, 1e-6), (200, 1e-6), (1000, 1e-5)])
def test_squashed_renyi_beyond_them_as_the_docstring_claims(order, tolerance):
    assert (squashed(order, torch.float64) - exact(order)).abs().max() < tolerance


@pytest.mark.parametrize("offset", [1e-3, 1e-6, 1e-9, -1e-9, -1e-6, -1e-3])
def test_orders_close_to_one_are_continuous(offset):
    if abs(offset) == 1e-3:
        assert (squashed(1 + offset, torch.float64) - exact(1 + offset)).abs().max() < 2e-7
        assert (squashed(1 + offset, torch.float32).double() - exact(1 + offset)).abs().max() < 1e-5
    else:
        assert (squashed(1 + offset, torch.float64) - squashed(1, torch.float64)).abs().max() < 2e-6 + 100 * abs(offset)
        assert (squashed(1 + offset, torch.float32).double() - exact(1)).abs().max() < 3e-6 + 100 * abs(offset)


@pytest.mark.parametrize("family", [SHANNON, renyi(0.5), renyi(2), tsallis(1.5)], ids=label)
def test_the_public_numpy_reference_agrees(family):
    mean, log_std = MEAN[::5], LOG_STD[::5]
    truth = reference.squashed_gaussian_entropy(mean[:, None].numpy(), log_std[:, None].numpy(), family.name, family.order)
    torch.testing.assert_close(tanh_gaussian_entropy(mean[:, None], log_std[:, None], family), torch.from_numpy(truth), rtol=1e-6, atol=2e-6)


def test_min_entropy_is_the_smallest_of_minus_log_density():
    u = torch.linspace(-130, 130, 260_001, dtype=torch.float64)
    for mean, log_std in zip(MEAN[::4], LOG_STD[::4], strict=True):
        surprise = -Normal(mean, log_std.exp()).log_prob(u) + tanh_log_det(u)
        value = tanh_gaussian_entropy(mean[None], log_std[None], min_entropy)
        assert value <= surprise.min() + 1e-12
        near = torch.linspace(-1, 1, 2001, dtype=torch.float64) * 2e-3 + u[surprise.argmin()]
        assert abs(value - (-Normal(mean, log_std.exp()).log_prob(near) + tanh_log_det(near)).min()) < 1e-6
    assert (squashed(math.inf, torch.float32) - squashed(math.inf, torch.float64)).abs().max() < 3e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_min_entropy_where_one_mode_becomes_two(dtype):
    std = torch.tensor([0.6, math.sqrt(0.5) - 1e-5, math.sqrt(0.5), math.sqrt(0.5) + 1e-5, 0.72, 1.0], dtype=dtype)
    mean = torch.zeros_like(std).requires_grad_()
    value = tanh_gaussian_entropy(mean[:, None], std.log()[:, None], min_entropy)
    u = torch.linspace(0, 3, 30_001, dtype=torch.float64)[:, None]
    torch.testing.assert_close(value.detach().double(), (-Normal(0, std.double()).log_prob(u) + tanh_log_det(u)).amin(0), rtol=0, atol=1e-6)
    assert (torch.autograd.grad(value.sum(), mean)[0] == 0).all()  # two modes pull it apart equally


def test_renyi_entropy_decreases_in_the_order():
    values = torch.stack([squashed(order, torch.float64) for order in (0.01, 0.3, 0.95, 1 - 1e-6, 1, 1 + 1e-6, 1.05, 2, 7, 100, math.inf)])
    assert (values.diff(dim=0) < 2e-6).all()
    assert (values[0] <= math.log(2)).all()


@pytest.mark.parametrize("family", [SHANNON, renyi(0.5), renyi(1 - 1e-6), renyi(1 + 1e-6), renyi(1.04), renyi(5), tsallis(2), min_entropy], ids=label)
def test_gradients_once_and_twice(family):
    mean = torch.tensor([[0.2, -1.3], [3.0, 0.7]], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([[-0.2, 0.3], [-3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda m, s: tanh_gaussian_entropy(m, s, family), (mean, log_std), atol=2e-6)
    torch.autograd.gradgradcheck(lambda m, s: tanh_gaussian_entropy(m, s, family), (mean, log_std), atol=3e-5)


@pytest.mark.parametrize("order", [0.5, 1, 1 + 1e-6, 2, 5])
def test_float32_gradients_equal_finite_differences_of_float64(order):
    mean, log_std = (x.float()[:, None].requires_grad_() for x in (MEAN, LOG_STD))
    tanh_gaussian_entropy(mean, log_std, renyi(order)).sum().backward()
    step, family = 1e-4, renyi(order)
    for which, grad in ((0, mean.grad), (1, log_std.grad)):
        shift = [(step, 0.0), (0.0, step)][which]
        plus, minus = (tanh_gaussian_entropy((MEAN + sign * shift[0])[:, None], (LOG_STD + sign * shift[1])[:, None], family) for sign in (1, -1))
        numeric = (plus - minus) / (2 * step)
        keep = MEAN != 0 if order > 1 else slice(None)  # at mean 0 and large order * std^2 the curvature is too large for differences
        error = (grad.squeeze(-1).double() - numeric).abs() / numeric.abs().clamp(min=1)
        assert error[keep].max() < 3e-5


def test_second_derivative_at_mean_zero_is_not_lost_at_the_fold():
    hessian = torch.func.jacrev(torch.func.jacrev(tanh_gaussian_entropy))(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    h = 1e-3
    at = [float(tanh_gaussian_entropy(torch.tensor([m], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))) for m in (-h, 0.0, h)]
    assert abs(float(hessian) - (at[0] - 2 * at[1] + at[2]) / h**2) < 1e-4


def test_known_facts_of_the_squashed_entropy():
    log_std = torch.linspace(-4, 2, 6001, dtype=torch.float64)[:, None]
    value = tanh_gaussian_entropy(torch.zeros(1, dtype=torch.float64), log_std)
    assert abs(value.max() - 0.6836) < 5e-5
    assert abs(log_std[value.argmax()].exp() - 0.8744) < 1e-3
    reach = [tanh_gaussian_entropy(torch.tensor([mean], dtype=torch.float64), log_std).max() for mean in (1.843, 1.845)]
    assert reach[0] > -1 > reach[1]


def test_dimensions_add_in_renyi_and_the_transform_comes_last():
    mean, log_std = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64) * 0.3
    parts = tanh_gaussian_entropy(mean[..., None], log_std[..., None], tsallis(2))
    whole = 1 - (1 - parts).prod(-1)  # T = 1 - integral p^2, a product over dimensions
    torch.testing.assert_close(tanh_gaussian_entropy(mean, log_std, tsallis(2)), whole)
    torch.testing.assert_close(tanh_gaussian_entropy(mean, log_std), tanh_gaussian_entropy(mean[..., None], log_std[..., None]).sum(-1))
    torch.testing.assert_close(tanh_gaussian_entropy(-mean, log_std, renyi(3)), tanh_gaussian_entropy(mean, log_std, renyi(3)))


@pytest.mark.parametrize("family", [SHANNON, renyi(2), renyi(1.001), min_entropy], ids=label)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does so itself
def test_func_transforms_and_graph_capture(family):
    def f(mean, log_std):
        return tanh_gaussian_entropy(mean, log_std, family)

    mean, log_std = torch.randn(5, 3), torch.randn(3) * 0.3  # broadcast
    torch.testing.assert_close(torch.func.vmap(f, in_dims=(0, None))(mean, log_std), f(mean, log_std))
    by_func = torch.func.vmap(torch.func.grad(f), in_dims=(0, None))(mean, log_std)
    leaf = mean.clone().requires_grad_()
    torch.testing.assert_close(by_func, torch.autograd.grad(f(leaf, log_std).sum(), leaf)[0])
    captured = torch.compile(f, backend="eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(captured(leaf, log_std).sum(), leaf)[0], by_func)


def test_half_precision_is_computed_in_float32():
    mean, log_std = torch.randn(4, 2).half(), torch.randn(4, 2).half()
    for value in (tanh_gaussian_entropy(mean, log_std), gaussian_entropy(log_std), gaussian_kl(mean, log_std, mean, log_std)):
        assert value.dtype == torch.float32
    torch.testing.assert_close(tanh_gaussian_entropy(mean, log_std), tanh_gaussian_entropy(mean.float(), log_std.float()))
    assert tanh_gaussian_entropy(mean, log_std.double()).dtype == torch.float64


@pytest.mark.parametrize("family", [renyi(0), tsallis(0), renyi(1001)], ids=label)
def test_orders_that_do_not_exist_are_refused(family):
    with pytest.raises(ValueError, match="order"):
        tanh_gaussian_entropy(torch.zeros(1), torch.zeros(1), family)
    if family.order == 0:
        with pytest.raises(ValueError, match=r"legal for a continuous distribution are orders > 0"):
            gaussian_entropy(torch.zeros(1), family)


def test_tanh_log_det_is_exact_everywhere_with_its_gradient():
    u = torch.tensor([-90.0, -20.0, -9.0, -1.0, -1e-4, 0.0, 0.3, 9.0, 20.0], requires_grad=True)
    value = tanh_log_det(u)
    wide = u.detach().double()
    truth = 2 * math.log(2) - 2 * torch.logaddexp(wide, -wide)
    torch.testing.assert_close(value.double(), truth, rtol=2e-7, atol=2e-7)
    value.sum().backward()
    torch.testing.assert_close(u.grad, -2 * u.detach().tanh(), rtol=3e-7, atol=1e-7)
    wide = wide.requires_grad_()
    (slope,) = torch.autograd.grad(tanh_log_det(wide).sum(), wide, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), wide)  # also at 0, where |u| has none
    torch.testing.assert_close(bend, -2 / wide.detach().cosh().square())


@pytest.mark.parametrize("order", [0.3, 1 - 1e-9, 1, 1 + 1e-7, 2, 20])
def test_gaussian_against_quadrature(order):
    log_std = torch.tensor([[-2.0], [0.7]], dtype=torch.float64)
    for value, ls in zip(gaussian_entropy(log_std, renyi(order)), log_std.squeeze(-1).tolist(), strict=True):
        density = Normal(torch.tensor(0.0, dtype=torch.float64), math.exp(ls))
        if abs(order - 1) < 1e-6:
            assert abs(value - density.entropy()) < 1e-6
        else:
            width = 12 * math.exp(ls) / math.sqrt(min(order, 1))
            power = quad(lambda u, d=density: float((order * d.log_prob(torch.tensor(u, dtype=torch.float64))).exp()), -width, width, points=[0.0], epsabs=0)[0]
            assert abs(value - math.log(power) / (1 - order)) < 1e-7


def test_gaussian_min_entropy_is_minus_the_log_of_the_peak():
    density = Normal(torch.zeros(2), torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(gaussian_entropy(density.scale.log(), min_entropy), -density.log_prob(torch.zeros(2)).sum())


@pytest.mark.parametrize(
    ("function", "argument"),
    [(gaussian_entropy, torch.tensor(0.0)), (multivariate_gaussian_entropy, torch.ones(2)), (multivariate_gaussian_entropy, torch.ones(2, 3))],
)
def test_shapes_that_are_no_gaussian_are_refused(function, argument):
    with pytest.raises(ValueError, match=r"(log_std|scale_tril): shape \(.*\); legal is \(\*, D"):
        function(argument)


@pytest.mark.parametrize("family", [SHANNON, renyi(2), tsallis(0.5), min_entropy], ids=label)
def test_full_covariance_agrees_with_the_diagonal_and_with_torch(family):
    factor = torch.randn(3, 4, 4, dtype=torch.float64)
    scale_tril = torch.linalg.cholesky(factor @ factor.mT + torch.eye(4, dtype=torch.float64))
    value = multivariate_gaussian_entropy(scale_tril, family)
    principal = torch.linalg.eigvalsh(scale_tril @ scale_tril.mT).sqrt().log()
    torch.testing.assert_close(value, gaussian_entropy(principal, family))
    if family == SHANNON:
        torch.testing.assert_close(value, MultivariateNormal(torch.zeros(4, dtype=torch.float64), scale_tril=scale_tril).entropy())


def test_gaussian_kl_equals_torch_and_keeps_small_updates():
    p, q = (Normal(torch.randn(5, 3), torch.rand(5, 3) + 0.3) for _ in range(2))
    torch.testing.assert_close(gaussian_kl(p.loc, p.scale.log(), q.loc, q.scale.log()), kl_divergence(p, q).sum(-1))
    small = gaussian_kl(torch.zeros(1), torch.full((1,), 1e-3), torch.zeros(1), torch.zeros(1))
    assert abs(float(small) / (0.5 * (math.expm1(2e-3) - 2e-3)) - 1) < 1e-3


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.3), (-1.2, 2.0), (3.0, 0.05)])
def test_squashed_mean_and_mode(mean, std):
    m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    u = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    log_density = Normal(m, s).log_prob(u)
    assert abs(squashed_mean(m, s.log()) - torch.trapezoid(u.tanh() * log_density.exp(), u)) < 1e-6
    assert abs(squashed_mode(m, s.log()) - u[(log_density - tanh_log_det(u)).argmax()]) < 2e-4
