"""Categorical entropies: laws, exact gradients under masks, double backward, torch.func, torch.compile, errors, parity with torch.distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jacrev, vmap

from entreg import reference
from entreg.functional import (
    SHANNON,
    bernoulli_entropy,
    categorical_entropy,
    categorical_entropy_from_probs,
    categorical_stats,
    clamped_entropy,
    min_entropy,
    renyi,
    renyi_divergence,
    top_p_entropy,
    tsallis,
)

FAMILIES = [SHANNON, renyi(0), renyi(0.5), renyi(1 - 1e-6), renyi(1 + 1e-6), renyi(2), min_entropy, tsallis(0.5), tsallis(2)]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.name}({f.order!r})")
smooth = pytest.mark.parametrize("family", [f for f in FAMILIES if f is not min_entropy], ids=lambda f: f"{f.name}({f.order!r})")


def case(n=5, classes=6, seed=0, dtype=torch.float64):
    """Logits, classes taken, and a support that allows them; rows 1 and 2 also hold -inf logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=dtype)
    index = torch.randint(classes, (n,), generator=generator)
    support = (torch.rand(n, classes, generator=generator) > 0.4).scatter(-1, index.unsqueeze(-1), True)
    return logits, index, support


def gradient(function, logits):
    z = logits.clone().requires_grad_()
    return torch.autograd.grad(function(z).sum(), z)[0]


@families
def test_masked_classes_are_as_if_they_were_not_there(family):
    logits, index, support = case()
    log_prob, entropy = categorical_stats(logits, index, family, support=support)
    as_infinite = categorical_stats(logits.masked_fill(~support, -math.inf), index, family)
    assert torch.equal(log_prob, as_infinite[0]) and torch.equal(entropy, as_infinite[1])
    slope = gradient(lambda z: categorical_entropy(z, family, support=support), logits)
    assert bool((slope[~support] == 0).all())
    for row, allowed in enumerate(support):
        alone = logits[row, allowed]
        torch.testing.assert_close(entropy[row], categorical_entropy(alone, family))
        torch.testing.assert_close(slope[row, allowed], gradient(lambda z: categorical_entropy(z, family), alone))


@families
def test_masked_values_may_be_anything(family):
    logits, index, support = case()
    wild = torch.where(support, logits, torch.tensor([math.nan, math.inf, -math.inf, 1e300, 0, -1e300], dtype=logits.dtype))
    for function in (lambda z: categorical_entropy(z, family, support=support), lambda z: categorical_stats(z, index, family, support=support)[0]):
        assert torch.equal(function(wild), function(logits))
        assert torch.equal(gradient(function, wild), gradient(function, logits))


@families
@pytest.mark.parametrize("logits", [[0.0, 0.0, 0.0], [900.0, 0.0, -900.0], [1.0, -math.inf, -math.inf], [3.0], [2.0, 2.0, -math.inf]], ids=str)
def test_edges_are_finite_both_ways(family, logits):
    """Uniform, one-hot by underflow, one class left, one class at all, ties."""
    for dtype in (torch.float64, torch.float32):
        z = torch.tensor(logits, dtype=dtype)
        value, slope = categorical_entropy(z, family), gradient(lambda x: categorical_entropy(x, family), z)
        assert bool(value.isfinite()) and bool(slope.isfinite().all())
        np.testing.assert_allclose(value.numpy(), reference.discrete_entropy(logits, family.name, family.order), atol=3e-6)
        np.testing.assert_allclose(slope.numpy(), reference.discrete_entropy_gradient(logits, family.name, family.order), atol=1e-6)


@smooth
def test_gradcheck_twice_masked_uniform_and_one_hot(family):
    logits, index, support = case(n=4)
    rows = torch.cat((logits, torch.zeros(1, 6, dtype=torch.float64), 40 * torch.eye(6, dtype=torch.float64)[:1])).requires_grad_()
    support = torch.cat((support, torch.ones(2, 6, dtype=torch.bool)))
    index = torch.cat((index, torch.tensor([1, 0])))
    assert torch.autograd.gradcheck(lambda z: categorical_stats(z, index, family, support=support), rows)
    assert torch.autograd.gradgradcheck(lambda z: categorical_stats(z, index, family, support=support), rows, atol=1e-5)


def test_double_backward_is_not_silently_that_of_constants():
    """The Hessian of Shannon entropy at uniform is -(I - 1/V)/V."""
    z = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(categorical_entropy(z), z, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(g, z, retain_graph=True)[0] for g in first])
    torch.testing.assert_close(hessian, -(torch.eye(4, dtype=torch.float64) - 0.25) / 4)


@families
def test_every_order_has_a_second_derivative(family):
    """Also where the first is a constant, at order 0."""
    z = case()[0].requires_grad_()
    (first,) = torch.autograd.grad(categorical_entropy(z, family).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad((first * first.detach().cos()).sum(), z)
    assert bool(second.isfinite().all()) and bool((second == 0).all()) == (family == renyi(0) or family.order == 0)


@pytest.mark.parametrize("excluded", ["support", "logit"])
def test_the_log_probability_of_a_class_that_does_not_exist_has_no_gradient(excluded):
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    support = torch.tensor([True, True, False])
    index = torch.tensor([2, 0])

    def log_prob(z):
        given = (z, support) if excluded == "support" else (z.masked_fill(~support, -math.inf), None)
        return categorical_stats(given[0], index, support=given[1])[0]

    assert log_prob(logits)[0] == -math.inf
    slope = gradient(log_prob, logits)
    p = logits[1, :2].softmax(-1)
    torch.testing.assert_close(slope, torch.tensor([[0, 0, 0], [1 - p[0], -p[1], 0]]))
    ratio = gradient(lambda z: (log_prob(z) - log_prob(z).detach()).exp(), logits)  # -inf - -inf: a NaN comes back
    assert bool(ratio.isfinite().all())


@families
def test_torch_func(family):
    logits, index, support = case()

    def both(z, i, s):
        return sum(categorical_stats(z, i, family, support=s))

    expected = gradient(lambda z: both(z, index, support), logits)
    torch.testing.assert_close(vmap(both)(logits, index, support), both(logits, index, support))
    torch.testing.assert_close(vmap(grad(both))(logits, index, support), expected)
    torch.testing.assert_close(grad(lambda z: vmap(both)(z, index, support).sum())(logits), expected)
    many = vmap(lambda s: categorical_entropy(logits, family, support=s))(torch.stack((support, torch.ones_like(support))))
    torch.testing.assert_close(many[1], categorical_entropy(logits, family))
    shared = vmap(lambda z: categorical_entropy(z, family, support=support), in_dims=1)(torch.stack((logits, 2 * logits), 1))
    torch.testing.assert_close(shared[1], categorical_entropy(2 * logits, family, support=support))
    if family is SHANNON:
        rows = jacrev(jacrev(categorical_entropy))(torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(rows, -(torch.eye(3, dtype=torch.float64) - 1 / 3) / 3)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, from inside its tracer
@pytest.mark.parametrize("family", [SHANNON, renyi(2), tsallis(1.5)], ids=lambda f: f"{f.name}({f.order!r})")
def test_torch_compile_in_one_graph(family):
    torch._dynamo.reset()
    logits, index, support = case()
    compiled = torch.compile(lambda z: categorical_stats(z, index, family, support=support), fullgraph=True, backend="aot_eager")
    expected = categorical_stats(logits, index, family, support=support)
    torch.testing.assert_close(compiled(logits), expected)
    slopes = [gradient(lambda z: sum(function(z)), logits) for function in (compiled, lambda z: categorical_stats(z, index, family, support=support))]  # noqa: B023
    torch.testing.assert_close(*slopes)


@families
def test_entropy_is_the_mean_surprise_and_the_pass_is_one(family):
    logits, _, support = case()
    every = torch.arange(6).expand(5, 6)
    log_prob, entropy = categorical_stats(logits.unsqueeze(1).expand(5, 6, 6), every, family, support=support.unsqueeze(1))
    torch.testing.assert_close(entropy[:, 0], categorical_entropy(logits, family, support=support))
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(5, dtype=torch.float64))
    if family is SHANNON:
        torch.testing.assert_close(-(log_prob.exp() * log_prob.clamp(min=-1e3)).sum(-1), entropy[:, 0])


@families
def test_renyi_adds_over_independent_parts_and_tsallis_has_its_cross_term(family):
    first, second = case(n=1, classes=3)[0][0], case(n=1, classes=4, seed=1)[0][0]
    joint = categorical_entropy((first[:, None] + second).flatten(), family)
    a, b = categorical_entropy(first, family), categorical_entropy(second, family)
    cross = (1 - family.order) * a * b if family.name == "tsallis" else 0
    torch.testing.assert_close(joint, a + b + cross)


@pytest.mark.parametrize(("order", "limit"), [(1e-300, 0), (1e-45, 0), (1e39, math.inf), (1e300, math.inf)])
def test_orders_that_float32_cannot_hold_are_their_limits(order, limit):
    logits = torch.tensor([[1.0, 0.0, -math.inf], [0.0, 0.0, 0.0]])
    assert torch.equal(categorical_entropy(logits, renyi(order)), categorical_entropy(logits, renyi(limit)))
    other = torch.tensor([0.0, 1.0, 2.0])
    assert torch.equal(renyi_divergence(logits, other, order), renyi_divergence(logits, other, limit))


shapes = st.tuples(st.lists(st.integers(1, 3), max_size=3), st.integers(1, 9)).map(lambda pair: (*pair[0], pair[1]))
orders = st.one_of(st.floats(0, 12), st.sampled_from([0, 0.4, 1 - 1e-7, 1, 1 + 1e-7, 1.6, 2, math.inf]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shape=shapes, order=orders, seed=st.integers(0, 2**16), scale=st.sampled_from([0.0, 0.1, 3.0, 200.0]), offset=st.sampled_from([0.0, 1e4, -1e4]))
def test_laws_for_all_shapes_orders_masks_and_offsets(shape, order, seed, scale, offset):
    generator = torch.Generator().manual_seed(seed)
    family = renyi(order)
    logits = (scale * torch.randn(shape, generator=generator) + offset).requires_grad_()
    support = torch.rand(shape, generator=generator) > 0.3
    support[..., 0] = True
    entropy = categorical_entropy(logits, family, support=support)
    (slope,) = torch.autograd.grad(entropy.sum(), logits)
    assert entropy.shape == shape[:-1] and entropy.dtype == torch.float32
    ceiling = support.sum(-1).log()
    assert bool((entropy >= -1e-6).all()) and bool((entropy <= ceiling + 2e-6).all())
    assert bool((slope[~support] == 0).all())
    torch.testing.assert_close(slope.sum(-1), torch.zeros(shape[:-1]), rtol=0, atol=4e-6 * max(1, min(order, 12)))
    permutation = torch.randperm(shape[-1], generator=generator)
    permuted = categorical_entropy(logits[..., permutation], family, support=support[..., permutation])
    torch.testing.assert_close(permuted, entropy, rtol=1e-6, atol=2e-6)
    oracle = reference.discrete_entropy(logits.detach().numpy(), "renyi", order, support=support.numpy())
    np.testing.assert_allclose(entropy.detach().numpy(), oracle, rtol=3e-7, atol=2e-6)


def test_parity_with_torch_distributions():
    logits, index, _ = case(n=50, dtype=torch.float32)
    peer = torch.distributions.Categorical(logits=logits)
    log_prob, entropy = categorical_stats(logits, index)
    torch.testing.assert_close(log_prob, peer.log_prob(index))
    torch.testing.assert_close(entropy, peer.entropy())
    torch.testing.assert_close(categorical_entropy_from_probs(peer.probs), peer.entropy())
    coins = torch.distributions.Bernoulli(logits=logits)
    torch.testing.assert_close(bernoulli_entropy(logits), coins.entropy())


@pytest.mark.parametrize("function", [categorical_entropy, lambda z: categorical_stats(z, torch.zeros(3, dtype=torch.long))[1]])
def test_a_row_with_no_class_left_is_an_error(function):
    logits = torch.zeros(3, 4)
    logits[1] = -math.inf
    with pytest.raises(ValueError, match=r"logits: row \(1,\) has no class left"):
        function(logits)
    with pytest.raises(ValueError, match=r"support: row \(2,\) has no class left"):
        categorical_entropy(torch.zeros(3, 4), support=torch.tensor([[True], [True], [False]]))
    with pytest.raises(ValueError, match="no class left"):
        vmap(categorical_entropy)(logits)


@families
def test_a_nan_stays_a_nan(family):
    logits = torch.zeros(2, 3)
    logits[0, 1] = math.nan
    assert categorical_entropy(logits, family).isnan().tolist() == [True, False]


def test_arguments_are_checked():
    z = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"logits: got shape \(2, 3\) of torch.int64, legal is a floating tensor"):
        categorical_entropy(z.long())
    with pytest.raises(ValueError, match="legal is a floating tensor"):
        categorical_entropy(torch.zeros(2, 0))
    with pytest.raises(ValueError, match=r"support: got torch\.float32, legal is a boolean tensor"):
        categorical_entropy(z, support=z)
    for shape in ((2,), (4, 2, 3)):
        with pytest.raises(ValueError, match=r"support: got shape .*legal is one that broadcasts to \(2, 3\)"):
            categorical_entropy(z, support=torch.ones(shape, dtype=torch.bool))
    for index in (torch.zeros(3, dtype=torch.long), torch.zeros(2), torch.zeros(2, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"index: got .*legal is an integer tensor of shape \(2,\)"):
            categorical_stats(z, index)
    assert categorical_stats(z, torch.zeros(2, dtype=torch.int32))[0].tolist() == pytest.approx([-math.log(3)] * 2)


def test_entropy_from_probabilities_is_scale_free_and_zero_is_no_trap():
    probs = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64, requires_grad=True)
    for family in FAMILIES:
        entropy = categorical_entropy_from_probs(probs, family)
        torch.testing.assert_close(entropy, categorical_entropy_from_probs(3 * probs, family))
        torch.testing.assert_close(entropy, categorical_entropy(probs.detach().log(), family))
        (slope,) = torch.autograd.grad(entropy, probs)
        assert bool(slope.isfinite().all()) and slope[-1] == 0
        assert torch.autograd.gradcheck(lambda p: categorical_entropy_from_probs(torch.cat((p, p.new_zeros(1))), family), probs[:3].detach().requires_grad_())  # noqa: B023
    assert bool(categorical_entropy_from_probs(torch.tensor([1.5, -0.5])).isnan())


@families
def test_bernoulli_has_both_terms_and_no_trap_at_infinity(family):
    z = torch.tensor([-math.inf, -3.0, 0.0, 1.0, math.inf], dtype=torch.float64)
    entropy, slope = bernoulli_entropy(z, family), gradient(lambda x: bernoulli_entropy(x, family), z)
    assert bool(entropy.isfinite().all()) and bool(slope.isfinite().all())
    if family.order > 0:
        assert entropy[0] == entropy[-1] == 0
    torch.testing.assert_close(entropy[1:-1], categorical_entropy(torch.stack((z, -z), -1)[1:-1] / 2, family))


@families
def test_top_p_keeps_the_smallest_set_that_reaches_p(family):
    logits = torch.tensor([0.05, 0.5, 0.3, 0.15], dtype=torch.float64).log()
    for p, kept in ((0.49, [1]), (0.51, [1, 2]), (0.79, [1, 2]), (0.81, [1, 2, 3]), (0.96, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])):
        torch.testing.assert_close(top_p_entropy(logits, p, family), categorical_entropy(logits[kept], family))
        slope = gradient(lambda z: top_p_entropy(z, p, family), logits)  # noqa: B023
        torch.testing.assert_close(slope[kept], gradient(lambda z: categorical_entropy(z, family), logits[kept]))
        assert slope.count_nonzero() <= len(kept)
    dyadic = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    torch.testing.assert_close(top_p_entropy(dyadic, 0.5, family), torch.zeros((), dtype=torch.float64))  # reached exactly: no further class
    banned = torch.tensor([True, False, True, True])
    torch.testing.assert_close(top_p_entropy(logits, 0.55, family, support=banned), categorical_entropy(logits[[2]], family))
    torch.testing.assert_close(top_p_entropy(logits, 0.65, family, support=banned), categorical_entropy(logits[[2, 3]], family))


@families
def test_the_clamp_drops_the_lowest_of_the_allowed_by_rank(family):
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0], [5.0, 0.0, -math.inf, 1.0, 2.0]], dtype=torch.float64)
    for fraction, first, second in ((0.0, [0, 1, 2, 3, 4], [0, 1, 3, 4]), (0.2, [0, 1, 2, 3], [0, 1, 3, 4]), (0.5, [1, 2, 3], [0, 4]), (0.99, [1], [0])):
        expected = torch.stack((categorical_entropy(logits[0, first], family), categorical_entropy(logits[1, second], family)))
        torch.testing.assert_close(clamped_entropy(logits, fraction, family), expected)
        slope = gradient(lambda z: clamped_entropy(z, fraction, family), logits)  # noqa: B023
        assert bool((slope.sum(-1).abs() < 1e-12).all())
    banned = torch.tensor([True, False, True, True, True])
    torch.testing.assert_close(clamped_entropy(logits[0], 0.5, family, support=banned), categorical_entropy(logits[0, [2, 3]], family))


def test_truncations_check_their_arguments():
    for p in (0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"p: got .*legal is 0 < p <= 1"):
            top_p_entropy(torch.zeros(3), p)
    for fraction in (1, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"fraction: got .*legal is 0 <= fraction < 1"):
            clamped_entropy(torch.zeros(3), fraction)
