"""Soft values and policies: an oracle of its own solver, SciPy's optimiser, optimality conditions, the worked example, exact gradients, laws."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from entreg import reference
from entreg.functional import SHANNON, categorical_entropy, min_entropy, renyi, soft_backup, soft_policy, soft_value, tsallis
from entreg.spelling import spell
from tests.cases import FAMILIES, FamilyCase

MORE = [FamilyCase(renyi(0.1), "renyi", 0.1), FamilyCase(tsallis(0.1), "tsallis", 0.1), FamilyCase(tsallis(3), "tsallis", 3)]
LEGAL = [case for case in FAMILIES + MORE if 0 < case.order <= 1 or (case.kind == "tsallis" and case.order > 1)]
each = pytest.mark.parametrize("case", LEGAL, ids=lambda case: f"{case.kind}({case.order!r})")
away_from_one = pytest.mark.parametrize("case", [c for c in LEGAL if abs(c.order - 1) > 1e-5 or c.order == 1], ids=lambda c: f"{c.kind}({c.order!r})")


def drawn(rows=40, actions=6, seed=0):
    rng = np.random.default_rng(seed)
    support = rng.random((rows, actions)) > 0.3
    support[:, 0] = True
    return rng.normal(size=(rows, actions)), rng.uniform(0.05, 3, rows), support


def tensors(*arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


@away_from_one
@pytest.mark.parametrize("masked", [False, True])
def test_oracle(case, masked):
    q, temperature, support = drawn()
    given = support if masked else None
    mask = None if given is None else torch.from_numpy(given)
    policy = soft_policy(*tensors(q, temperature), case.family, support=mask)
    expected = reference.soft_policy(q, temperature, case.kind, case.order, support=given)
    np.testing.assert_allclose(policy.numpy(), expected, atol=1e-12 if case.order <= 3 else 1e-6)  # dp/dq ~ p^(2-order): rounding of q alone shows there
    value = soft_value(*tensors(q, temperature), case.family, support=mask)
    np.testing.assert_allclose(value.numpy(), reference.soft_value(q, temperature, case.kind, case.order, support=given), rtol=1e-12, atol=1e-12)
    if masked:
        assert bool((policy[~mask] == 0).all())
        torch.testing.assert_close(soft_value(*tensors(np.where(support, q, -np.inf), temperature), case.family), value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "order"), [("shannon", 1), ("tsallis", 0.5), ("tsallis", 1.5), ("tsallis", 2), ("tsallis", 3), ("renyi", 0.3), ("renyi", 0.9)]
)
def test_the_reference_is_what_scipy_finds(kind, order):
    for seed in range(3):
        q = np.random.default_rng(seed).normal(size=4)

        def loss(p, q=q):
            return -(p @ q + 0.6 * reference.discrete_entropy(np.log(np.maximum(p, 1e-300)), kind, order))

        limits = [(1e-9, 1)] * 4
        found = optimize.minimize(loss, np.full(4, 0.25), method="SLSQP", bounds=limits, constraints={"type": "eq", "fun": lambda p: p.sum() - 1}, tol=1e-13)
        assert reference.soft_value(q, 0.6, kind, order) == pytest.approx(-found.fun, abs=1e-7)
        np.testing.assert_allclose(reference.soft_policy(q, 0.6, kind, order), found.x, atol=1e-3)


def slope_of_entropy(p, kind, order):
    """Derivative of the entropy to each probability, as if they were free."""
    if order == 1:
        return -p.log() - 1
    power = order * p ** (order - 1) / (1 - order)
    return power / (p**order).sum(-1, keepdim=True) if kind == "renyi" else power


@each
def test_optimality_conditions(case):
    """`q + tau Omega'(p)` is one number on the support, and no action outside it has more; the residual stays below 1e-8."""
    q, temperature, _ = drawn(200)
    q, tau = torch.from_numpy(q), torch.from_numpy(temperature)[:, None]
    p = soft_policy(q, tau[:, 0], case.family)
    torch.testing.assert_close(p.sum(-1), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-14)
    held = (p > 0).all(-1) if case.order <= 1 else torch.ones(200, dtype=torch.bool)
    pull = (q + tau * slope_of_entropy(p, case.kind, case.order))[held]
    if abs(case.order - 1) < 1e-5 and case.order != 1:
        pull = pull - pull.new_tensor(1 / (1 - case.order)) * tau[held]  # the constant that would take the digits
    best = pull.gather(-1, p[held].argmax(-1, keepdim=True))
    residual = torch.where(p[held] > 0, (pull - best).abs(), (pull - best).clamp(min=0))
    assert float(residual.max()) < (1e-8 if case.order == 1 or abs(case.order - 1) > 1e-5 else 1e-6)


def test_the_worked_example():
    q = torch.tensor([1, 0.7, 0.2, -0.5], dtype=torch.float64)
    torch.testing.assert_close(soft_policy(q, 0.6, tsallis(2)), torch.tensor([0.625, 0.375, 0, 0], dtype=torch.float64), rtol=0, atol=1e-15)
    assert float(soft_value(q, 0.6, tsallis(2))) == pytest.approx(1.16875, abs=1e-15)


@each
def test_gradients_are_exact(case):
    q, temperature, support = drawn(4, 4, seed=3)
    inputs = tuple(x.requires_grad_() for x in tensors(q, temperature))
    mask = torch.from_numpy(support)
    for function in (soft_value, soft_policy):
        assert torch.autograd.gradcheck(lambda *x, f=function: f(*x, case.family, support=mask), inputs)
        assert torch.autograd.gradgradcheck(lambda *x, f=function: f(*x, case.family, support=mask), inputs)
    (gradient,) = torch.autograd.grad(soft_value(*inputs, case.family, support=mask).sum(), inputs[0])
    assert torch.equal(gradient, soft_policy(*inputs, case.family, support=mask))


@each
def test_absent_actions_are_safe_backward(case):
    q = torch.tensor([[1.0, -torch.inf, 0.5, 30.0], [0.0, -torch.inf, -torch.inf, 2.0]], requires_grad=True)
    temperature = torch.tensor([0.5, 2.0], requires_grad=True)
    support = torch.tensor([[True, True, True, False], [True, True, True, True]])
    value, policy = (function(q, temperature, case.family, support=support) for function in (soft_value, soft_policy))
    gradients = torch.autograd.grad(value.sum() + policy.square().sum(), (q, temperature), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), (q, temperature))
    for gradient in (*gradients, *second):
        assert bool(torch.isfinite(gradient).all())
    absent = ~support | (q == -torch.inf)
    assert bool((gradients[0][absent] == 0).all()) and bool((policy[absent] == 0).all())


@each
def test_float32_and_half_precision(case):
    q, temperature, _ = drawn()
    exact = soft_value(*tensors(q, temperature), case.family)
    value = soft_value(*(x.float() for x in tensors(q, temperature)), case.family)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
    half = torch.from_numpy(q).bfloat16()
    assert torch.equal(soft_policy(half, 0.5, case.family), soft_policy(half.float(), 0.5, case.family))


@each
def test_laws(case):
    """Between the best value and that plus tau times the largest entropy, reached where all are equal; shifts; never further apart than the arguments."""
    q, temperature, _ = drawn(100)
    q, tau = tensors(q, temperature)
    largest = categorical_entropy(torch.zeros(q.shape[-1], dtype=torch.float64), case.family)
    value = soft_value(q, tau, case.family)
    assert bool((value >= q.amax(-1) - 1e-12).all() and (value <= q.amax(-1) + tau * largest + 1e-12).all())
    torch.testing.assert_close(soft_value(torch.full_like(q, 2.5), tau, case.family), 2.5 + tau * largest)
    torch.testing.assert_close(soft_value(q + 7, tau, case.family), value + 7)
    other = q + torch.from_numpy(np.random.default_rng(5).normal(size=q.shape))
    assert bool(((soft_value(other, tau, case.family) - value).abs() <= (other - q).abs().amax(-1) + 1e-12).all())
    torch.testing.assert_close(soft_value(q, 1e-7, case.family), q.amax(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(soft_policy(q * 1e30, 1.0, case.family).amax(-1), torch.ones(100, dtype=torch.float64))


def test_shannon_is_the_limit_from_both_sides():
    q, temperature, _ = drawn()
    shannon = soft_policy(*tensors(q, temperature))
    for family in (tsallis(1 - 1e-7), tsallis(1 + 1e-7), renyi(1 - 1e-7)):
        torch.testing.assert_close(soft_policy(*tensors(q, temperature), family), shannon, rtol=0, atol=1e-5)
    assert torch.equal(soft_policy(*tensors(q, temperature), renyi(1)), shannon)


def test_batches_of_torch_func_are_batches():
    q = torch.randn(4, 5, 3, dtype=torch.float64)
    for family in (SHANNON, tsallis(2), tsallis(1.5), renyi(0.5)):
        assert torch.equal(torch.func.vmap(lambda x, f=family: soft_value(x, 0.5, f))(q), soft_value(q, 0.5, family))
        slope = torch.func.vmap(torch.func.grad(lambda x, f=family: soft_value(x, 0.5, f).sum()))(q)
        assert torch.equal(slope, soft_policy(q, 0.5, family))


@pytest.mark.parametrize("family", [renyi(2), renyi(1 + 1e-7), min_entropy, renyi(0), tsallis(0)], ids=spell)
def test_families_without_a_soft_value_are_refused_with_the_reason(family):
    with pytest.raises(ValueError, match=r"family: got .* (not concave|never reached)"):
        soft_value(torch.zeros(3), 1.0, family)


def test_bad_arguments_are_named():
    q = torch.zeros(2, 3)
    for bad in (0, -1.0, math.inf, math.nan, torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match="temperature: got"):
            soft_value(q, bad)
    with pytest.raises(ValueError, match=r"temperature: got shape \(3,\)"):
        soft_value(q, torch.ones(3))
    for family in (SHANNON, tsallis(2), tsallis(1.5), renyi(0.5)):
        with pytest.raises(ValueError, match=r"q: row \(1,\) has no class left"):
            soft_policy(torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf]]), 1.0, family)
    with pytest.raises(ValueError, match="support: row"):
        soft_value(q, 1.0, support=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"gamma: got 1\.5"):
        soft_backup(q, q, 1.5)


def test_nothing_follows_the_end():
    reward, value = torch.ones(3), torch.tensor([2.0, torch.nan, torch.inf], requires_grad=True)
    backup = soft_backup(reward, value, 0.5, torch.tensor([False, True, True]))
    assert backup.tolist() == [2.0, 1.0, 1.0]
    backup.sum().backward()
    assert value.grad.tolist() == [0.5, 0.0, 0.0]
