"""KL and Rényi divergences of two softmaxes: oracle, limits, both gradients, absent classes, small divergences in float32."""

import math

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

from entreg import reference
from entreg.functional import categorical_entropy, categorical_kl, renyi, renyi_divergence

ORDERS = (0, 0.25, 0.5, 0.9, 1 - 1e-7, 1, 1 + 1e-7, 1.2, 2, 5, math.inf)
orders = pytest.mark.parametrize("order", ORDERS)


def pair(n=5, classes=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    p, q = (2 * torch.randn(n, classes, generator=generator, dtype=dtype) for _ in range(2))
    support = torch.rand(n, classes, generator=generator) > 0.3
    support[:, 0] = True
    return p, q, support


@orders
def test_oracle_masked_and_not(order):
    p, q, support = pair()
    for mask in (None, support):
        expected = reference.discrete_divergence(p.numpy(), q.numpy(), order, support=None if mask is None else mask.numpy())
        np.testing.assert_allclose(renyi_divergence(p, q, order, support=mask).numpy(), expected, rtol=1e-6, atol=1e-7)
        single = renyi_divergence(p.float(), q.float(), order, support=mask)
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single.numpy(), expected, rtol=2e-5, atol=2e-6)


@orders
def test_both_gradients_and_the_second_ones(order):
    p, q, support = (x[:2] for x in pair())
    p, q = p.requires_grad_(), q.requires_grad_()
    for mask in (None, support):
        assert torch.autograd.gradcheck(lambda p, q: renyi_divergence(p, q, order, support=mask), (p, q))  # noqa: B023
        slopes = torch.autograd.grad(renyi_divergence(p, q, order, support=mask).sum(), (p, q))
        for slope in slopes:
            torch.testing.assert_close(slope.sum(-1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((torch.stack(slopes)[:, ~support] == 0).all())
    if not math.isinf(order):
        assert torch.autograd.gradgradcheck(lambda p, q: renyi_divergence(p, q, order, support=support), (p, q), atol=1e-4)


@orders
def test_against_uniform_it_is_the_entropy_that_is_missing(order):
    p, _, _ = pair()
    torch.testing.assert_close(renyi_divergence(p, torch.zeros(6, dtype=torch.float64), order), math.log(6) - categorical_entropy(p, renyi(order)))


def test_kl_is_order_one_the_limit_and_torchs():
    p, q, _ = pair()
    kl = categorical_kl(p, q)
    peer = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q))
    torch.testing.assert_close(kl, peer)
    for order in (1 - 1e-6, 1 + 1e-6):
        torch.testing.assert_close(renyi_divergence(p, q, order), kl, rtol=1e-5, atol=1e-5)
    values = torch.stack([renyi_divergence(p, q, a) for a in ORDERS if abs(a - 1) != 1e-7])
    assert bool((values.diff(dim=0) >= 0).all())


def test_absent_classes():
    inf = math.inf
    p, q = torch.tensor([0.0, 0.0, -inf]), torch.tensor([0.0, -inf, 0.0])
    for order, expected in ((0, math.log(2)), (0.5, 2 * math.log(2)), (1, inf), (2, inf), (inf, inf)):
        assert renyi_divergence(p, q, order).item() == pytest.approx(expected)
    fuller = torch.zeros(3)
    for order in ORDERS:
        assert renyi_divergence(p, fuller, order).item() == pytest.approx(math.log(1.5), rel=1e-6)
        slopes = grad(lambda z: renyi_divergence(z[0], z[1], order))(torch.stack((p, fuller)))  # noqa: B023
        assert bool(slopes.isfinite().all()) and slopes[0, 2] == 0


def test_small_divergences_keep_their_digits_in_float32_and_none_is_negative():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(500, 10, generator=generator)
    q = p + 1e-3 * torch.randn(500, 10, generator=generator)
    exact = reference.discrete_divergence(p.numpy(), q.numpy())
    np.testing.assert_allclose(categorical_kl(p, q).numpy(), exact, rtol=5e-3)
    assert bool((categorical_kl(p, p) == 0).all())
    naive = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).double().numpy()
    assert np.abs(categorical_kl(p, q).double().numpy() - exact).max() < np.abs(naive - exact).max() / 20


@orders
def test_torch_func(order):
    p, q, support = pair()
    torch.testing.assert_close(vmap(lambda p, q, s: renyi_divergence(p, q, order, support=s))(p, q, support), renyi_divergence(p, q, order, support=support))
    slope = vmap(grad(lambda p, q: renyi_divergence(p, q, order)), in_dims=(0, None))(p, q[0])
    z = p.clone().requires_grad_()
    torch.testing.assert_close(slope, torch.autograd.grad(renyi_divergence(z, q[0], order).sum(), z)[0])


def test_arguments_are_checked():
    z = torch.zeros(2, 3)
    for order in (-1, math.nan):
        with pytest.raises(ValueError, match=r"order: got .*legal is"):
            renyi_divergence(z, z, order)
    with pytest.raises(ValueError, match=r"logits_q: got .*legal is"):
        categorical_kl(z, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"logits_q: .*legal is a floating tensor"):
        categorical_kl(z, z.long())
