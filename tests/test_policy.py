"""The policy of a run folder: which member it is, and that it sees observations as they were in training."""

import math

import numpy as np
import pytest
import torch

from entreg import load
from entreg.checkpoint import Checkpoints
from entreg.policy import Exported, play
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


def trained(out, env, **changes):
    config = {"env": env, "steps": 32, "environments": 2, "hidden": (4,), "video": False, "eval_episodes": 1, **changes}
    return load(a2c.train(a2c.Config(**config), Run(RunSettings(out=out, quiet=True))).folder)


@pytest.mark.parametrize(
    ("env", "raw", "read"),
    [
        ("FrozenLake-v1", 3, np.eye(16)[3]),
        ("Blackjack-v1", (4, 2, 1), np.concatenate([np.eye(32)[4], np.eye(11)[2], np.eye(2)[1]])),
        ("tests.rl.small:Picture-v0", np.arange(432, dtype=np.uint8).reshape(12, 12, 3), np.arange(432, dtype=np.uint8).reshape(12, 12, 3).transpose(2, 0, 1)),
    ],
)
def test_it_acts_on_what_the_environment_gives(env, raw, read, tmp_path):
    policy = trained(tmp_path, env)
    batch, single = policy._batch(raw)
    np.testing.assert_array_equal(batch, read[None])
    assert single and policy.act(raw) == policy.act(read)
    if not isinstance(raw, tuple):
        assert policy.act([raw, raw]).tolist() == [policy.act(raw)] * 2
    with pytest.raises(ValueError, match="or lie in"):
        policy.act(99 if env == "FrozenLake-v1" else np.zeros(5))


def test_actions_are_counted_as_the_environment_counts_them_and_masks_are_its_own(tmp_path):
    policy = trained(tmp_path, "tests.rl.worlds:Masked-v0")
    assert policy.act(-2, np.array([0, 0, 1, 0])) == 7
    assert policy.act([-2, 1], [[0, 0, 1, 0], [1, 0, 0, 0]]).tolist() == [7, 5]
    assert Exported(policy)(torch.eye(5))[1].tolist() == policy.act(np.eye(5)).tolist()
    for mask, words in (([1, 1, 1], "has 3 entries"), ([0, 0, 0, 0], "allows no action")):
        with pytest.raises(ValueError, match=words):
            policy.act(-2, mask)
    with pytest.raises(ValueError, match="classes of 2 observations"):
        policy.act([-2, 1], [[1, 1, 1, 1]])


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_a_temperature_that_cannot_be_meant_is_refused(folder, temperature):
    with pytest.raises(ValueError, match="temperature must be finite and not negative"):
        load(folder).act(np.zeros(4), temperature=temperature)


def test_an_observation_that_is_not_finite_is_refused(folder):
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        load(folder).act(np.array([0.0, math.nan, 0.0, 0.0]))


def test_a_file_that_cannot_become_an_animation_is_refused_before_anything_is_played(folder, tmp_path, monkeypatch):
    for name in ("film.xyz", "film"):
        with pytest.raises(ValueError, match=r"legal are files that end in \.gif or \.mp4"):
            next(play(folder, save=tmp_path / name))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match="imageio-ffmpeg"):
        next(play(folder, save=tmp_path / "film.mp4"))
    assert list(tmp_path.iterdir()) == []
