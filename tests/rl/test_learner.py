"""What updates read: minibatches hold items of their own member, advantages are normalised member by member."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from entreg.recipes import ppo
from entreg.rl.learner import Learner, Rollout
from entreg.rl.ranks import Ranks
from entreg.run import Run, RunSettings


def rollout(members=3, items=8, mask=None):
    here = torch.arange(members * items, dtype=torch.float32).reshape(members, items)
    return Rollout(torch.stack([here, -here], -1), here[..., None], mask, here[..., None], here, here + 1, here**2, here + 3)


def test_a_minibatch_takes_the_members_own_items_of_every_part():
    order = torch.tensor([[7, 0], [1, 1], [2, 5]])
    whole = rollout(mask=torch.rand(3, 8, 4) > 0.5)
    taken = whole.take(order)
    assert taken.weight is None
    for part, of in zip(taken[:-1], whole[:-1], strict=True):
        for member in range(3):
            assert torch.equal(part[member], of[member][order[member]])
    assert rollout().take(order).mask is None


@pytest.mark.parametrize("normalise", [True, False])
def test_advantages_are_normalised_by_each_members_mean_and_deviation(normalise):
    learner, given = SimpleNamespace(config=SimpleNamespace(normalise_advantage=normalise), ranks=Ranks()), rollout()
    found = Learner.advantage(learner, given)
    for member in range(3):
        own = given.advantage[member]
        torch.testing.assert_close(found[member], (own - own.mean()) / (own.std() + 1e-8) if normalise else own)
    alone = rollout(items=1)
    assert torch.equal(Learner.advantage(learner, alone), alone.advantage)  # the deviation of one item is no number


def learner_for(folder, **changes):
    config = ppo.Config(**{"environments": 3, "rollout": 12, "hidden": (4,), "steps": 72, "video": False, "eval_episodes": 2, "seeds": 2, **changes})
    return Learner("ppo", config, Run(RunSettings(out=folder, quiet=True, seed=0)))


def test_the_entropy_that_enters_the_return_is_that_of_the_legal_actions_also_where_an_episode_is_cut(tmp_path):
    with learner_for(tmp_path, env="tests.rl.worlds:Cut-v0", over="trajectory", coef=("0.1",)) as learner, torch.no_grad():
        learner.network.parameters.data.zero_()  # every legal action is as probable as another: the entropy is log(t % 4 + 1)
        noise = learner.streams.noise((12, 3, 1), "uniform")
        experience = learner.collector.collect(learner.act, noise, learner.check)
        _, _, log_prob, entropy = learner._look(experience)
    assert len(set(np.bincount(experience.final_at[:, 0]).tolist())) == 2  # the members' numbers of cut episodes differ
    for found, seen in zip(entropy, (experience.observation, experience.last, experience.final), strict=True):
        np.testing.assert_allclose(found, np.log(seen[..., 0] % 4 + 1), atol=1e-6)
    np.testing.assert_allclose(-log_prob.numpy().reshape(2, 12, 3), entropy[0], atol=1e-6)


def test_evaluation_plays_other_episodes_than_training(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("entreg.rl.episodes.evaluate_members", lambda *_, seeds, **__: seen.extend(seeds) or [[(1.0, 1)] for _ in seeds])
    with learner_for(tmp_path) as learner:
        learner.evaluate()
    assert len(seen) == 2 and seen[1] - seen[0] == 1 and not set(seen) & set(range(1000))
