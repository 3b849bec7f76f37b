"""REINFORCE's baselines: what is subtracted from the returns, member by member."""

from types import SimpleNamespace

import torch

from entreg.recipes.reinforce import with_baseline
from entreg.rl.learner import Rollout
from entreg.rl.ranks import Ranks

ALONE = SimpleNamespace(ranks=Ranks())


def test_a_baseline_is_the_value_the_members_mean_or_nothing():
    returns, empty = torch.tensor([[1.0, 3.0], [10.0, 30.0]]), torch.empty(0)
    rollout = Rollout(empty, empty, None, empty, empty, empty, torch.tensor([[0.5, -0.5], [2.0, 1.0]]), returns)
    assert with_baseline(ALONE, rollout, "value") == rollout
    assert with_baseline(ALONE, rollout, "mean").advantage.tolist() == [[-1.0, 1.0], [-10.0, 10.0]]
    assert with_baseline(ALONE, rollout, "none").advantage is returns
