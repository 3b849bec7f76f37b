"""Attribution of entropy's fall: against finite differences of the policy gradient itself, and against the covariances of the papers."""

import math

import pytest
import torch

from entreg.functional import categorical_entropy
from entreg.functional.attribution import advantage_covariance, entropy_change, entropy_drift, entropy_drivers


def made(shape=(6, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 2, generator


def test_the_change_is_the_slope_of_the_entropy():
    logits, generator = made()
    change = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    step = 1e-5
    differences = (categorical_entropy(logits + step * change) - categorical_entropy(logits - step * change)) / (2 * step)
    torch.testing.assert_close(entropy_change(logits, change), differences, rtol=1e-7, atol=1e-9)


def test_the_drift_is_what_a_step_of_the_policy_gradient_does():
    logits, generator = made()
    index = torch.randint(5, (6,), generator=generator)
    advantage = torch.randn(6, generator=generator, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    (leaf.log_softmax(-1).gather(-1, index[:, None])[:, 0] * advantage).sum().backward()
    step = 1e-5
    differences = (categorical_entropy(logits + step * leaf.grad) - categorical_entropy(logits - step * leaf.grad)) / (2 * step)
    torch.testing.assert_close(entropy_drift(logits, index, advantage), differences, rtol=1e-6, atol=1e-9)


def test_a_whole_step_of_the_expected_policy_gradient_changes_entropy_by_minus_the_covariance():
    """dz_v = step p_v (A_v - V): the change is -step Cov_p(log p, p (A - V)), lemma 1 of Cui et al."""
    logits, generator = made((5,))
    reward = torch.randn(5, generator=generator, dtype=torch.float64)
    p = logits.softmax(-1)
    gradient, log_p = p * (reward - (p * reward).sum()), logits.log_softmax(-1)
    covariance = (p * log_p * gradient).sum() - (p * log_p).sum() * (p * gradient).sum()
    step = 1e-5
    differences = (categorical_entropy(logits + step * gradient) - categorical_entropy(logits - step * gradient)) / (2 * step)
    torch.testing.assert_close(differences, -covariance, rtol=1e-6, atol=1e-9)
    drawn = sum(p[v] * entropy_drift(logits, torch.tensor(v), reward[v] - (p * reward).sum()) for v in range(5))
    torch.testing.assert_close(drawn, -covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["support", "infinite"])
def test_classes_that_do_not_exist_are_as_if_they_were_not_there(how):
    logits, generator = made()
    change, index, advantage = torch.randn(logits.shape, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0]), torch.ones(6).double()
    wide = torch.cat([logits, torch.full((6, 2), 9.0 if how == "support" else -math.inf).double()], 1)
    support = torch.arange(7).expand(6, 7) < 5 if how == "support" else None
    torch.testing.assert_close(entropy_change(wide, torch.cat([change, torch.ones(6, 2).double()], 1), support=support), entropy_change(logits, change))
    torch.testing.assert_close(entropy_drift(wide, index, advantage, support=support), entropy_drift(logits, index, advantage))


def test_a_shift_of_all_logits_changes_nothing_and_neither_does_anything_at_the_uniform_policy():
    logits, _ = made()
    torch.testing.assert_close(entropy_change(logits, torch.ones_like(logits)), torch.zeros(6).double())
    torch.testing.assert_close(entropy_change(torch.zeros(6, 5).double(), logits), torch.zeros(6).double())


def test_the_mean_of_the_parts_is_the_covariance_over_the_mask():
    values, generator = made((4, 3))
    advantage = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    parts = advantage_covariance(values, advantage, mask)
    torch.testing.assert_close(parts[mask].mean(), torch.cov(torch.stack([values[mask], advantage[mask]]), correction=0)[0, 1])
    assert not parts[~mask].any()


def test_drivers_are_the_groups_that_pull_down_most():
    values, groups = torch.tensor([-1.0, 0.5, -0.2, -0.2, 9.0]), torch.tensor([4, 4, 8, 8, 1])
    assert [(one.group, round(one.total, 6), one.items) for one in entropy_drivers(values, groups)] == [(4, -0.5, 2), (8, -0.4, 2), (1, 9.0, 1)]
    assert [one.group for one in entropy_drivers(values, groups, mask=groups != 4, count=1)] == [8]
