"""REINFORCE's baselines: what is subtracted from the returns, member by member."""

import torch

from entreg.recipes.reinforce import with_baseline
from entreg.rl.learner import Rollout


def test_a_baseline_is_the_value_the_members_mean_or_nothing():
    returns, empty = torch.tensor([[1.0, 3.0], [10.0, 30.0]]), torch.empty(0)
    rollout = Rollout(empty, empty, None, empty, empty, empty, torch.tensor([[0.5, -0.5], [2.0, 1.0]]), returns)
    assert with_baseline(rollout, "value") == rollout
    assert with_baseline(rollout, "mean").advantage.tolist() == [[-1.0, 1.0], [-10.0, 10.0]]
    assert with_baseline(rollout, "none").advantage is returns
