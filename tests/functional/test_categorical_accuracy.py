"""float32 against float64 on the same float32 logits: offsets of 1e4, masks, peaks of 2000, one class to 50k, orders .25 to 10 and at 1 +- 1e-7.

The promise: entropies within 2e-6 absolute or 3e-7 relative, log-probabilities within 2.5e-7 max(1, |log p|), gradients within 1e-6 max(1, a).
A Tsallis gradient of an order below 1 is itself as large as V^(1-q): there the bound is relative to its largest entry.
"""

import numpy as np
import pytest
import torch

from entreg import reference
from entreg.functional import SHANNON, categorical_entropy, categorical_stats, min_entropy, renyi, tsallis

ORDERS = (0.25, 0.39, 0.41, 0.5, 0.75, 0.9, 1 - 1e-7, 1 + 1e-7, 1.1, 1.3, 1.59, 1.61, 2, 3, 5, 10)
FAMILIES = [SHANNON, min_entropy, renyi(0), *map(renyi, ORDERS), tsallis(0), *map(tsallis, ORDERS)]


def logits_of_all_kinds(classes):
    rng = np.random.default_rng(classes)
    rows = 32 if classes <= 300 else 2
    for scale in (0.01, 1, 4, 30, 2000):
        for offset in (0, 1e4, -1e4):
            yield (rng.normal(size=(rows, classes)) * scale + offset).astype(np.float32)
    yield np.zeros((2, classes), np.float32)
    peaked = np.zeros((2, classes), np.float32)
    peaked[:, 0] = 2000
    yield peaked
    masked = rng.normal(size=(rows, classes)).astype(np.float32) * 3 + 1e4
    masked[:, 1:][rng.random((rows, classes - 1)) < 0.5] = -np.inf
    yield masked.astype(np.float32)


@pytest.mark.parametrize("classes", [1, 2, 4, 18, 300, 50_000])
def test_entropy_and_gradient(classes):
    families = FAMILIES if classes <= 300 else FAMILIES[::3]
    for logits in logits_of_all_kinds(classes):
        for family in families:
            z = torch.tensor(logits, requires_grad=True)
            entropy = categorical_entropy(z, family)
            (gradient,) = torch.autograd.grad(entropy.sum(), z)
            expected = reference.discrete_entropy(logits, family.name, family.order)
            error = np.abs(entropy.detach().double().numpy() - expected)
            assert (error <= np.maximum(2e-6, 3e-7 * np.abs(expected))).all(), (family, error.max())
            slope = reference.discrete_entropy_gradient(logits, family.name, family.order)
            finite_order = family.order if family.order < 1e9 else 1
            assert np.abs(gradient.double().numpy() - slope).max() <= 1e-6 * max(1, finite_order, np.abs(slope).max()), family


@pytest.mark.parametrize("classes", [1, 2, 18, 300, 50_000])
def test_log_prob_and_its_gradient(classes):
    rng = np.random.default_rng(1)
    for logits in logits_of_all_kinds(classes):
        index = np.where(np.isfinite(logits), rng.random(logits.shape), -1).argmax(-1)
        z = torch.tensor(logits, requires_grad=True)
        log_prob, _ = categorical_stats(z, torch.tensor(index))
        (gradient,) = torch.autograd.grad(log_prob.sum(), z)
        log_p = reference.log_softmax(logits)
        expected = np.take_along_axis(log_p, index[:, None], -1)[:, 0]
        assert (np.abs(log_prob.detach().double().numpy() - expected) <= 2.5e-7 * np.maximum(1, np.abs(expected))).all()
        one_hot = np.arange(classes) == index[:, None]
        assert np.abs(gradient.double().numpy() - (one_hot - np.exp(log_p))).max() <= 1e-6


def test_small_orders_of_the_largest_gap_keep_their_gradient():
    """At p_max = .9999 over 10 classes the gradient's norm is .031 at order 1/2, .0012 for Shannon, .0002 at order 2."""
    probs = torch.tensor([0.9999, *[0.0001 / 9] * 9])
    norms = []
    for family in (renyi(0.5), SHANNON, renyi(2)):
        z = probs.log().requires_grad_()
        norms.append(torch.autograd.grad(categorical_entropy(z, family), z)[0].norm().item())
    assert norms == pytest.approx([0.031, 0.0012, 0.0002], rel=0.1)
