"""k1, k2, k3 by exact enumeration on a small categorical: which value is unbiased, and which gradient is that of what."""

import pytest
import torch

from entreg.functional import categorical_kl, k1, k2, k3

P = torch.tensor([0.5, -1.0, 1.5, 0.2], dtype=torch.float64)
Q = torch.tensor([-0.3, 0.8, 0.4, 1.0], dtype=torch.float64)
OLD = torch.tensor([0.1, 0.3, -0.5, 0.9], dtype=torch.float64)


def slope(function):
    z = P.clone().requires_grad_()
    return torch.autograd.grad(function(z), z)[0]


FORWARD, BACKWARD = slope(lambda z: categorical_kl(z, Q)), slope(lambda z: categorical_kl(Q, z))


def on_policy_loss(estimator):
    """Gradient of E_{x ~ p}[k(x)] through log p(x) only: what a loss on samples descends."""
    return slope(lambda z: (z.detach().softmax(-1) * estimator(Q.log_softmax(-1) - z.log_softmax(-1))).sum())


def in_the_reward(estimator):
    """E[k(x) grad log p(x)]: what a penalty inside the reward descends."""
    return slope(lambda z: (z.detach().softmax(-1) * estimator(Q.log_softmax(-1) - z.detach().log_softmax(-1)) * z.log_softmax(-1)).sum())


def off_policy_loss(estimator, differentiated):
    """Gradient of E_{x ~ old}[p/old k(x)], with the importance ratio inside the gradient or not."""

    def loss(z):
        log_ratio = (z if differentiated else z.detach()).log_softmax(-1) - OLD.log_softmax(-1)
        return (OLD.softmax(-1) * log_ratio.exp() * estimator(Q.log_softmax(-1) - z.log_softmax(-1))).sum()

    return slope(loss)


def same(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-12)


def test_the_two_directions_differ():
    assert not same(FORWARD, BACKWARD) and not same(FORWARD, torch.zeros_like(FORWARD))


def test_values_k1_and_k3_are_unbiased_k2_is_not_and_k3_is_never_negative():
    p, r = P.softmax(-1), Q.log_softmax(-1) - P.log_softmax(-1)
    exact = categorical_kl(P, Q).item()
    assert (p * k1(r)).sum().item() == pytest.approx(exact)
    assert (p * k3(r)).sum().item() == pytest.approx(exact)
    assert (p * k2(r)).sum().item() != pytest.approx(exact, rel=0.01)
    assert bool((k1(r) < 0).any() and (k3(r) >= 0).all() and (k2(r) >= 0).all())


def test_near_equality_k3_has_the_smaller_variance():
    near = P + torch.tensor([0.05, -0.05, 0.02, 0.0], dtype=torch.float64)
    p, r = P.softmax(-1), near.log_softmax(-1) - P.log_softmax(-1)
    assert (p * k3(r).square()).sum() < (p * k1(r).square()).sum() / 100


def test_as_a_loss_on_policy_k1_does_nothing_k2_is_right_k3_turns_the_direction():
    assert same(on_policy_loss(k1), torch.zeros_like(P))
    assert same(on_policy_loss(k2), FORWARD)
    assert same(on_policy_loss(k3), BACKWARD)


def test_in_the_reward_only_k1_is_right():
    assert same(in_the_reward(k1), FORWARD)
    assert not same(in_the_reward(k2), FORWARD) and not same(in_the_reward(k3), FORWARD)


def test_off_policy_with_the_ratio_differentiated_k1_and_k3_are_right():
    assert same(off_policy_loss(k1, True), FORWARD) and same(off_policy_loss(k3, True), FORWARD)
    assert not same(off_policy_loss(k2, True), FORWARD)


def test_off_policy_with_the_ratio_detached_k2_is_right():
    assert same(off_policy_loss(k2, False), FORWARD)
    assert not same(off_policy_loss(k1, False), FORWARD) and not same(off_policy_loss(k3, False), FORWARD)
