"""Every family on every distribution (`tests/cases.py`): oracle, limits, order, gradients; and the families themselves."""

import math
import pickle

import numpy as np
import pytest
import torch

from entreg.functional import SHANNON, categorical_entropy, curvature, min_entropy, renyi, tsallis
from tests.cases import DISTRIBUTIONS, FAMILIES

legal = pytest.mark.parametrize(
    ("distribution", "case"),
    [pytest.param(d, f, id=f"{d.name}-{f.kind}({f.order!r})") for d in DISTRIBUTIONS for f in FAMILIES if d.orders[0] <= f.order <= d.orders[1]],
)
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda d: d.name)


def drawn(distribution, n=6, seed=0):
    return tuple(torch.from_numpy(x) for x in distribution.draw(np.random.default_rng(seed), n))


@legal
def test_oracle(distribution, case):
    parameters = drawn(distribution)
    expected = distribution.oracle(*(x.numpy() for x in parameters), case.kind, case.order)
    torch.testing.assert_close(
        distribution.entropy(*parameters, case.family), torch.from_numpy(expected), rtol=distribution.tolerance, atol=distribution.tolerance
    )


@legal
def test_float32_and_half_precision(distribution, case):
    """float32 stays float32; half precisions are computed in float32 from the values they hold."""
    parameters = drawn(distribution)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = tuple(x.to(dtype) for x in parameters)
        expected = distribution.oracle(*(x.double().numpy() for x in given), case.kind, case.order)
        got = distribution.entropy(*given, case.family)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), expected, rtol=max(2e-6, distribution.tolerance), atol=max(5e-6, distribution.tolerance))


@legal
def test_gradcheck(distribution, case):
    parameters = tuple(x.requires_grad_() for x in drawn(distribution, n=3))
    assert torch.autograd.gradcheck(lambda *x: distribution.entropy(*x, case.family), parameters)


@each_distribution
def test_shannon_is_the_limit_from_both_sides_and_order_one_is_it_exactly(distribution):
    parameters = drawn(distribution)
    shannon = distribution.entropy(*parameters)
    assert torch.equal(distribution.entropy(*parameters, renyi(1)), shannon)
    assert torch.equal(distribution.entropy(*parameters, tsallis(1)), shannon)
    for make in (renyi, tsallis):
        for order in (1 - 1e-7, 1 + 1e-7):
            torch.testing.assert_close(distribution.entropy(*parameters, make(order)), shannon, rtol=0, atol=5e-6)
        below, above = (distribution.entropy(*parameters, make(order)) for order in (1 - 1e-4, 1 + 1e-4))
        assert bool((below > shannon).all() and (shannon > above).all())


@each_distribution
def test_entropy_falls_as_the_order_rises(distribution):
    parameters = drawn(distribution, n=20)
    low, high = distribution.orders
    orders = sorted({a for a in (0, 0.25, 0.39, 0.41, 0.5, 0.9, 1, 1.1, 1.59, 1.61, 2, 5, 10, 100, math.inf) if low <= a <= high})
    values = torch.stack([distribution.entropy(*parameters, renyi(a)) for a in orders])
    assert bool((values.diff(dim=0) <= 1e-12).all())


@pytest.mark.parametrize("case", FAMILIES, ids=lambda f: f"{f.kind}({f.order!r})")
def test_families_pickle_compare_equal_and_are_keys(case):
    again = pickle.loads(pickle.dumps(case.family))
    assert again == case.family and hash(again) == hash(case.family)
    assert case.family.name == case.kind and case.family.order == case.order


def test_spellings_of_one_family_are_equal_and_of_two_are_not():
    assert renyi(2) == renyi(2.0) and tsallis(2) == tsallis(2.0)
    assert len({SHANNON, min_entropy, renyi(2), tsallis(2), renyi(3), tsallis(3)}) == 6


def test_transforms_increase():
    grid = torch.linspace(0, 5, 50, dtype=torch.float64)
    for case in FAMILIES:
        assert bool((case.family.from_renyi(grid).diff() > 0).all())


@pytest.mark.parametrize("order", [-1, -1e-9, math.nan, -math.inf, "2", None, torch.tensor(2.0)])
def test_illegal_orders(order):
    for make in (renyi, tsallis):
        with pytest.raises(ValueError, match=r"order: got .*legal is"):
            make(order)


def test_tsallis_refuses_infinity():
    with pytest.raises(ValueError, match="order: got inf, legal is a finite number"):
        tsallis(math.inf)


@pytest.mark.parametrize("family", [SHANNON, renyi(0.5), renyi(2), tsallis(0.5), tsallis(2)])
def test_curvature_is_the_quadratic_term_at_uniform(family):
    classes = 6
    step = 1e-4 * torch.tensor([1.0, -2.0, 0.5, 0.5, 1.0, -1.0], dtype=torch.float64)
    probs = 1 / classes + step
    top = categorical_entropy(torch.zeros(classes, dtype=torch.float64), family)
    fall = top - categorical_entropy(probs.log(), family)
    assert fall.item() == pytest.approx(curvature(family, classes) * classes * step.square().sum().item(), rel=1e-3)


def test_curvature_in_numbers():
    """Tsallis-2 over 10 classes pulls 5 times and over 50k classes 25,000 times more weakly than Shannon."""
    assert curvature(SHANNON, 10) == 0.5
    assert curvature(renyi(2), 10) == pytest.approx(1)
    assert curvature(SHANNON, 10) / curvature(tsallis(2), 10) == pytest.approx(5)
    assert curvature(SHANNON, 50_000) / curvature(tsallis(2), 50_000) == pytest.approx(25_000)
    for family, classes in ((renyi(0), 5), (min_entropy, 5), (SHANNON, 0), (SHANNON, math.nan)):
        with pytest.raises(ValueError, match="legal is"):
            curvature(family, classes)
