"""The policy of a run folder: which member it is, and that it sees observations as they were in training."""

import math

import numpy as np
import pytest
import torch

from entreg import load
from entreg.checkpoint import Checkpoints
from entreg.policy import Exported
from entreg.recipes import a2c
from entreg.run import Run, RunSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished population of two seeds at two coefficients, normalising what it sees."""
    config = a2c.Config(coef=("0.1", "0"), seeds=2, steps=64, environments=2, hidden=(4,), normalise_observation=True, video=False, eval_episodes=1)
    return a2c.train(config, Run(RunSettings(out=tmp_path_factory.mktemp("runs"), quiet=True))).folder


def flat(policy):
    return policy.network.parameters.data


def test_the_best_evaluated_member_of_the_first_coefficient_is_loaded(folder):
    checkpoints = Checkpoints(folder / "checkpoint")
    for best in (1, 0):
        top = max(checkpoints.best_scores().values()) + 1
        checkpoints.save_best(3, top + 1, load(folder, 3).state(), step=64)  # of the second coefficient: better, but not asked for
        checkpoints.save_best(best, top, load(folder, best).state(), step=64)
        assert torch.equal(flat(load(folder)), flat(load(folder, best)))
    assert len({tuple(flat(load(folder, member))[0].tolist()) for member in range(4)}) == 4
    with pytest.raises(ValueError, match="member must be between 0 and 3, got 4"):
        load(folder, 4)


def test_without_an_evaluation_it_is_the_newest_checkpoints(folder, tmp_path):
    state = Checkpoints(folder / "checkpoint").load().state
    again = tmp_path / "run"
    again.mkdir()
    for name in ("config.json", "records.jsonl"):
        (again / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ValueError, match="it has no checkpoint yet"):
        load(again)
    Checkpoints(again / "checkpoint").save(state, step=64, offset=0)
    for member in range(4):
        policy = load(again, member)
        assert torch.equal(flat(policy)[0], state["network"][member])
        np.testing.assert_array_equal(policy.moments.mean[0], state["collector"]["moments"]["mean"][member])


def test_it_acts_on_normalised_observations_and_so_does_its_export(folder):
    policy = load(folder)
    observation = np.random.default_rng(0).normal(0.0, 0.5, (50, 4)).astype(np.float32)
    seen = np.clip((observation - policy.moments.mean[0]) / np.sqrt(policy.moments.var[0] + 1e-8), -10, 10).astype(np.float32)
    with torch.no_grad():
        logits = policy.network.actor(torch.from_numpy(seen[None]))[0]
        outputs, action = Exported(policy)(torch.from_numpy(observation))
    assert policy.act(observation).tolist() == logits.argmax(-1).tolist() == action.tolist()
    torch.testing.assert_close(outputs, logits, rtol=1e-4, atol=1e-5)
    assert policy.act(observation[0]).shape == () and policy.act(observation[0]) == policy.act(observation)[0]
    assert set(policy.act(np.zeros((200, 4), np.float32), temperature=1.0)) == {0, 1}
    with pytest.raises(ValueError, match=r"observation must have shape \(4,\)"):
        policy.act(np.zeros(3))
    assert math.isfinite(outputs.abs().sum())
