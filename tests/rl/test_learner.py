"""What updates read: minibatches hold items of their own member, advantages are normalised member by member."""

from types import SimpleNamespace

import pytest
import torch

from entreg.rl.learner import Learner, Rollout


def rollout(members=3, items=8, mask=None):
    here = torch.arange(members * items, dtype=torch.float32).reshape(members, items)
    return Rollout(torch.stack([here, -here], -1), here[..., None], mask, here[..., None], here, here + 1, here**2, here + 3)


def test_a_minibatch_takes_the_members_own_items_of_every_part():
    order = torch.tensor([[7, 0], [1, 1], [2, 5]])
    whole = rollout(mask=torch.rand(3, 8, 4) > 0.5)
    taken = whole.take(order)
    for part, of in zip(taken, whole, strict=True):
        for member in range(3):
            assert torch.equal(part[member], of[member][order[member]])
    assert rollout().take(order).mask is None


@pytest.mark.parametrize("normalise", [True, False])
def test_advantages_are_normalised_by_each_members_mean_and_deviation(normalise):
    learner, given = SimpleNamespace(config=SimpleNamespace(normalise_advantage=normalise)), rollout()
    found = Learner.advantage(learner, given)
    for member in range(3):
        own = given.advantage[member]
        torch.testing.assert_close(found[member], (own - own.mean()) / (own.std() + 1e-8) if normalise else own)
    alone = rollout(items=1)
    assert torch.equal(Learner.advantage(learner, alone), alone.advantage)  # the deviation of one item is no number
