"""The oracle has oracles of its own: definitions summed by hand, SciPy's quadrature, published values; and it imports nothing of ours."""

import ast
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, special, stats

from entreg import reference


def test_it_imports_nothing_of_ours_and_no_torch():
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    imported = {name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in (alias.name.split(".")[0] for alias in node.names)}
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"math", "numpy"}


PROBS = np.array([0.5, 0.25, 0.125, 0.125])


@pytest.mark.parametrize(
    ("family", "order", "expected"),
    [
        ("shannon", 1, 1.75 * math.log(2)),
        ("renyi", 0, math.log(4)),
        ("renyi", 2, -math.log((PROBS**2).sum())),
        ("renyi", 0.5, 2 * math.log(np.sqrt(PROBS).sum())),
        ("renyi", math.inf, math.log(2)),
        ("min_entropy", 1, math.log(2)),
        ("tsallis", 0, 3),
        ("tsallis", 2, 1 - (PROBS**2).sum()),
        ("tsallis", 0.5, 2 * (np.sqrt(PROBS).sum() - 1)),
        ("tsallis", 1, 1.75 * math.log(2)),
    ],
)
def test_discrete_entropies_by_their_definitions(family, order, expected):
    logits = np.append(np.log(PROBS) + 3, -np.inf)
    assert reference.discrete_entropy(logits, family, order) == pytest.approx(expected, rel=1e-13)
    assert reference.discrete_entropy(np.append(logits, 5), family, order, support=[True] * 4 + [False] * 2) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("family", ["shannon", "renyi", "tsallis", "min_entropy"])
@pytest.mark.parametrize("order", [0, 0.3, 1 - 1e-4, 1 - 1e-6, 1, 1 + 1e-6, 1 + 1e-4, 2, 7])
def test_gradients_by_differences(family, order):
    logits = np.random.default_rng(0).normal(size=(3, 5))
    slope = reference.discrete_entropy_gradient(logits, family, order)
    step = 1e-4
    for i in range(5):
        up, down = (reference.discrete_entropy(logits + sign * step * np.eye(5)[i], family, order) for sign in (1, -1))
        np.testing.assert_allclose(slope[:, i], (up - down) / (2 * step), atol=3e-8)
    np.testing.assert_allclose(slope.sum(-1), 0, atol=1e-10)


def test_series_and_quotient_meet_near_order_one():
    logits = np.random.default_rng(1).normal(size=(4, 6)) * 2
    for sign in (1, -1):
        inside, outside = (reference.discrete_entropy(logits, "renyi", 1 + sign * step) for step in (0.99e-5, 1.01e-5))
        np.testing.assert_allclose(inside, outside, atol=1e-6)
        np.testing.assert_allclose((outside - inside) / (sign * 0.02e-5), -reference.varentropy(logits) / 2, rtol=0.01)


def test_divergences_and_squashed_entropies_keep_their_digits_near_order_one():
    """Differences from order 1 are -(a - 1)/2 times a variance: 1e-16 / (a - 1) of rounding would show."""
    logits = np.log(PROBS), np.log(PROBS[[2, 0, 3, 1]])
    for function in (lambda a: reference.discrete_divergence(*logits, a), lambda a: reference.squashed_gaussian_entropy([0.7], [0.1], "renyi", a)):
        slope = (function(1 + 2e-3) - function(1 - 2e-3)) / 4e-3
        for step in (1e-14, -1e-14, 1e-9, -1e-9, 0.9e-5, -0.9e-5, 1.1e-5):
            assert function(1 + step) - function(1) == pytest.approx(slope * step, rel=1e-3, abs=1e-9)


def test_divergences_by_their_definitions():
    p, q = PROBS, PROBS[[2, 0, 3, 1]]
    logits = np.log(p), np.log(q)
    assert reference.discrete_divergence(*logits) == pytest.approx(special.rel_entr(p, q).sum())
    assert reference.discrete_divergence(*logits, 2) == pytest.approx(math.log((p**2 / q).sum()))
    assert reference.discrete_divergence(*logits, 0.5) == pytest.approx(-2 * math.log(np.sqrt(p * q).sum()))
    assert reference.discrete_divergence(*logits, math.inf) == pytest.approx(math.log((p / q).max()))
    assert reference.discrete_divergence([0, -np.inf], [0, 0], 0) == pytest.approx(math.log(2))


def test_bernoulli_and_varentropy():
    assert reference.bernoulli_entropy([0.7])[0] == pytest.approx(stats.bernoulli(special.expit(0.7)).entropy())
    surprise = -np.log(PROBS)
    assert reference.varentropy(np.log(PROBS)) == pytest.approx((PROBS * surprise**2).sum() - (PROBS * surprise).sum() ** 2)


@pytest.mark.parametrize("order", [0.5, 1, 2, 5])
def test_gaussians_by_integration(order):
    density = stats.norm(0, 0.7).pdf
    if order == 1:
        expected = stats.norm(0, 0.7).entropy()
    else:
        expected = math.log(integrate.quad(lambda x: density(x) ** order, -20, 20, points=[0], limit=200)[0]) / (1 - order)
    log_std = np.log([[0.7, 0.7]])
    np.testing.assert_allclose(reference.gaussian_entropy(log_std, "renyi", order), [2 * expected], rtol=1e-9)
    np.testing.assert_allclose(reference.multivariate_gaussian_entropy([[[0.7, 0], [3.0, 0.7]]], "renyi", order), [2 * expected], rtol=1e-9)
    assert reference.gaussian_entropy(log_std[0, :1], "min_entropy") == pytest.approx(-math.log(density(0)))


def test_gaussian_kl_by_integration():
    p, q = stats.norm(0.3, 0.5), stats.norm(-0.2, 0.9)
    expected = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -8, 8)[0]
    assert reference.gaussian_kl([0.3], np.log([0.5]), [-0.2], np.log([0.9])) == pytest.approx(expected)


@pytest.mark.parametrize("order", [0.5, 0.9, 1, 1.1, 2, 5, 12])
@pytest.mark.parametrize(("mean", "std"), [(0, 0.01), (0, 0.8744), (0.3, 1), (-2, 0.3), (4, 0.5), (-1, 5)])
def test_squashed_gaussian_by_adaptive_integration(mean, std, order):
    """SciPy integrates over u, where the density of tanh(u) is p_u cosh(u)^2."""
    log_density = stats.norm(mean, std).logpdf

    def log_y(u):
        return log_density(u) + 2 * np.logaddexp(u, -u) - 2 * math.log(2)

    def integrand(u):
        return -math.exp(log_density(u)) * log_y(u) if order == 1 else math.exp(order * log_y(u) - 2 * np.logaddexp(u, -u) + 2 * math.log(2))

    width = std / math.sqrt(order)
    centres = (mean + 2 * std**2 * (order - 1) / order, 0.0, mean - 2 * std**2 * (order - 1) / order)
    edges = sorted({c + k * width for c in centres for k in (-12, -6, -3, -1, 0, 1, 3, 6, 12)})
    total = sum(integrate.quad(integrand, low, high, epsabs=0, epsrel=1e-11, limit=300)[0] for low, high in itertools.pairwise(edges))
    expected = total if order == 1 else math.log(total) / (1 - order)
    assert reference.squashed_gaussian_entropy([mean], [math.log(std)], "renyi", order) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_squashed_facts():
    """The maximum over the width is .6836 at .8744; beyond |mean| 1.844 no width reaches -1; dimensions add; at infinite order the largest density counts."""
    widths = np.linspace(0.5, 2, 151)
    values = np.array([reference.squashed_gaussian_entropy([0.0], [math.log(s)]) for s in widths])
    assert values.max() == pytest.approx(0.6836, abs=1e-4) and widths[values.argmax()] == pytest.approx(0.8744, abs=0.01)
    beyond = [reference.squashed_gaussian_entropy([1.85], [math.log(s)]) for s in np.geomspace(0.02, 5, 60)]
    assert max(beyond) < -1
    both = reference.squashed_gaussian_entropy([[0.2, -1.0]], [[0.0, -1.0]])
    alone = reference.squashed_gaussian_entropy([0.2], [0.0]) + reference.squashed_gaussian_entropy([-1.0], [-1.0])
    np.testing.assert_allclose(both, [alone])
    assert reference.squashed_gaussian_entropy([0.0], [math.log(0.3)], "min_entropy") == pytest.approx(-stats.norm(0, 0.3).logpdf(0), abs=1e-4)
    u = np.linspace(-20, 20, 400_001)  # a wide one has two bounded peaks
    largest = (stats.norm(0, 2).logpdf(u) - 2 * (math.log(2) - np.abs(u) - np.log1p(np.exp(-2 * np.abs(u))))).max()
    assert reference.squashed_gaussian_entropy([0.0], [math.log(2)], "min_entropy") == pytest.approx(-largest, abs=1e-4)


def test_the_loss():
    entropy = reference.discrete_entropy(np.zeros((2, 3)), "tsallis", 2)
    loss = reference.entropy_regularised_loss([-1.0, -2.0], [1.0, 3.0], entropy, coef=0.5)
    assert loss == pytest.approx(3.5 - 0.5 * 2 / 3)
    assert reference.entropy_regularised_loss([-1.0], [1.0], [2.0]) == pytest.approx(1 - 0.02)
    with pytest.raises(ValueError, match="advantages: got shape"):
        reference.entropy_regularised_loss([-1.0], [1.0, 2.0], [2.0])


def test_arguments_are_checked():
    for arguments, message in (
        (("gibbs",), "family: got 'gibbs', legal are shannon"),
        (("renyi", -1), "order: got -1, legal is"),
        (("renyi", math.nan), "order: got nan"),
        (("tsallis", math.inf), "order: got inf, .*finite"),
    ):
        with pytest.raises(ValueError, match=message):
            reference.discrete_entropy([0.0, 0.0], *arguments)
    for function in (reference.gaussian_entropy, lambda *a: reference.squashed_gaussian_entropy([0.0], *a)):
        with pytest.raises(ValueError, match="order: got 0, legal is a number > 0"):
            function([0.0], "renyi", 0)
    with pytest.raises(ValueError, match="no class left"):
        reference.discrete_entropy([-np.inf, -np.inf])
