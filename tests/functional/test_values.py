"""Errors and bootstrap values of Q-learning: oracles, laws and gradients."""

import math

import numpy as np
import pytest
import torch

from entreg import functional
from entreg.functional import SHANNON, renyi, tsallis

Q = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
P = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LEGAL = torch.rand(50, 4, generator=torch.Generator().manual_seed(2)) > 0.4
LEGAL[:, 2] = True


@pytest.mark.parametrize("delta", [0.3, 1.0, math.inf])
def test_huber_is_torchs_and_half_the_square_without_a_bound(delta):
    error = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    ours = functional.huber(error, delta)
    expected = error**2 / 2 if delta == math.inf else torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)
    torch.testing.assert_close(ours, expected)
    (slope,) = torch.autograd.grad(ours.sum(), error)
    torch.testing.assert_close(slope, error.detach().clamp(-delta, delta))


@pytest.mark.parametrize("support", [None, LEGAL])
def test_greedy_and_double_values_by_hand(support):
    legal = np.ones((50, 4), bool) if support is None else support.numpy()
    best = [max(np.flatnonzero(row), key=lambda a, q=q: q[a]) for row, q in zip(legal, Q.numpy(), strict=True)]
    np.testing.assert_array_equal(functional.greedy_value(Q, support=support), Q.numpy()[np.arange(50), best])
    np.testing.assert_array_equal(functional.double_value(Q, P, support=support), P.numpy()[np.arange(50), best])
    torch.testing.assert_close(functional.greedy_value(Q, support=support), functional.soft_value(Q, 1e-9, support=support))


def test_the_munchausen_bonus_is_the_clipped_log_policy():
    action = LEGAL.int().argmax(-1)
    for tau in (0.1, 1.0):
        log_pi = torch.where(LEGAL, Q / tau, -math.inf).log_softmax(-1)[torch.arange(50), action]
        expected = 0.9 * np.clip(tau * log_pi.numpy(), -1, 0)
        np.testing.assert_allclose(functional.munchausen_bonus(Q, action, tau, support=LEGAL), expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(functional.munchausen_bonus(Q, action, 1e-3, alpha=0.0, support=LEGAL), np.zeros(50))


@pytest.mark.parametrize("family", [SHANNON, tsallis(2), tsallis(0.5), renyi(0.5)])
def test_the_value_of_a_policy_is_at_most_the_soft_value_and_reaches_it_at_the_soft_policy(family):
    best = functional.soft_policy(Q, 0.7, family, support=LEGAL)
    value = functional.soft_value(Q, 0.7, family, support=LEGAL)
    at_best = functional.policy_value(best, Q, functional.categorical_entropy_from_probs(best, family), 0.7)
    torch.testing.assert_close(at_best, value)
    other = functional.soft_policy(P, 0.7, family, support=LEGAL)
    assert (functional.policy_value(other, Q, functional.categorical_entropy_from_probs(other, family), 0.7) <= value + 1e-9).all()


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="delta"):
        functional.huber(Q, 0.0)
    for wrong in ({"alpha": 1.5}, {"floor": 0.5}):
        with pytest.raises(ValueError, match="alpha, floor"):
            functional.munchausen_bonus(Q, LEGAL.int().argmax(-1), 1.0, **wrong)
