"""Saved as JSON and arrays, restored into fresh environments, continued: the same as never having stopped."""

import io
import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces, wrappers

from entreg.rl import restore
from entreg.rl.environments import make

RESTORABLE = [
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "FrozenLake-v1",
    "FrozenLake8x8-v1",
    "CliffWalkingSlippery-v1",
    "Taxi-v4",
    "Blackjack-v1",
    "tests.rl.worlds:Kept-v0",
]
SHORT = {"Acrobot-v1": 40, "MountainCar-v0": 40, "MountainCarContinuous-v0": 40, "Pendulum-v1": 40, "CliffWalkingSlippery-v1": 30}  # resets within the test


def through_a_file(value):
    """The value after JSON and .npy: nothing else may hold the state."""
    if isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        buffer.seek(0)
        return np.load(buffer, allow_pickle=False)
    if isinstance(value, dict):
        return {str(key): through_a_file(item) for key, item in value.items()}
    return json.loads(json.dumps(value))


def actions_for(environments, steps, generator):
    spec = environments.action_spec
    if spec.kind == "continuous":
        return generator.uniform(-2.5, 2.5, (steps, environments.n, *spec.sizes)).astype(np.float32)
    return generator.integers(0, spec.sizes[0], (steps, environments.n))


@pytest.mark.parametrize(("name", "mode"), [*((name, "auto") for name in RESTORABLE), ("CartPole-v1", "sync")])
def test_restored_is_uninterrupted(name, mode):
    kwargs = {"max_episode_steps": SHORT[name]} if name in SHORT else {}
    if name == "Taxi-v4":
        kwargs = {"fickle_passenger": True, "is_rainy": True, "max_episode_steps": 100}
    first, second = (make(name, seeds=[1, 2], per_member=2, mode=mode, env_kwargs=kwargs) for _ in range(2))
    generator = np.random.default_rng(0)
    before, after = actions_for(first, 57, generator), actions_for(first, 120, generator)
    first.reset()
    for actions in before:
        last = first.step(actions)
    state = first.state_dict()
    assert state is not None
    observation, mask = second.load_state_dict(through_a_file(state))
    np.testing.assert_array_equal(observation, last.observation, strict=True)
    assert (mask is None) == (last.mask is None)
    episodes = 0
    for drawn in after:
        actions = drawn if mask is None else np.where(mask[:, 4], 4, drawn)  # taxis pick up when they can: what they do next depends on a hidden flag
        one, other = first.step(actions), second.step(actions)
        for field in ("observation", "reward", "terminated", "truncated", "final_observation", "mask", "final_mask"):
            expected, got = getattr(one, field), getattr(other, field)
            assert expected is got is None or np.array_equal(expected, got), field
        assert one.episodes == other.episodes
        episodes, mask = episodes + len(one.episodes), one.mask
    assert episodes >= 4
    np.testing.assert_equal(second.state_dict(), first.state_dict())


def test_no_classic_or_toy_environment_is_left_out():
    families = ("gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.")
    points = {str(spec.entry_point) for spec in gymnasium.registry.values() if str(spec.entry_point).startswith(families)}
    known = {name.rpartition(".")[2] for name in restore.ATTRIBUTES}
    assert {point.rpartition(":")[2] for point in points} == known


def test_saving_does_not_disturb():
    one, other = (make("FrozenLake-v1", seeds=[0], per_member=2) for _ in range(2))
    one.reset(), other.reset()
    for actions in actions_for(one, 50, np.random.default_rng(0)):
        one.state_dict()
        np.testing.assert_array_equal(one.step(actions).observation, other.step(actions).observation)


def test_a_mask_is_part_of_the_state(monkeypatch):
    monkeypatch.setitem(restore.ATTRIBUTES, "tests.rl.worlds.Masked", ("t", "empty_at"))
    one, other = (make("tests.rl.worlds:Masked-v0", seeds=[0], per_member=1) for _ in range(2))
    one.reset()
    step = one.step(np.array([0]))
    observation, mask = other.load_state_dict(through_a_file(one.state_dict()))
    np.testing.assert_array_equal(mask, step.mask, strict=True)
    np.testing.assert_array_equal(observation, step.observation, strict=True)
    np.testing.assert_array_equal(other.step(np.array([1])).mask, one.step(np.array([1])).mask)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("tests.rl.worlds:Reveal-v0", {}),  # keeps things nobody listed
        ("FrozenLake-v1", {"map_name": None}),  # a random map
        ("tests.rl.worlds:Echo-v0", {"observation_space": spaces.Discrete(3)}),
    ],
)
def test_what_is_not_known_is_not_guessed(name, kwargs):
    environments = make(name, seeds=[0], per_member=2, env_kwargs=kwargs)
    environments.reset()
    assert environments.state_dict() is None


def test_an_unknown_wrapper_or_value_is_not_guessed():
    env = gymnasium.make("CartPole-v1", disable_env_checker=True)
    env.reset(seed=0)
    assert restore.capture(env) is not None
    assert restore.capture(wrappers.FrameStackObservation(env, 2)) is None
    env.unwrapped.steps_beyond_terminated = {1, 2}
    assert restore.capture(env) is None


def test_a_subclass_is_not_taken_for_its_base():
    class Windy(gymnasium.envs.classic_control.CartPoleEnv):
        wind = 0.0

    env = Windy()
    env.reset(seed=0)
    assert restore.capture(env) is None


def test_another_state_is_refused():
    state = make("CartPole-v1", seeds=[0], per_member=2).state_dict()
    with pytest.raises(ValueError, match="2 environments of kind 'cartpole' cannot be loaded into 3"):
        make("CartPole-v1", seeds=[0], per_member=3).load_state_dict(state)
    with pytest.raises(ValueError, match="of kind 'sync'"):
        make("CartPole-v1", seeds=[0], per_member=2, mode="sync").load_state_dict(state)


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -0.1, "A", np.float32(0.1), np.int64(2**40), (1, np.float64(2.0)), [np.bool_(True), [1.5]], np.arange(6, dtype=np.int8).reshape(2, 3)],
)
def test_values_keep_their_types(value):
    back = restore.decode(json.loads(json.dumps(restore.encode(value))))
    assert type(back) is type(value)
    np.testing.assert_equal(back, value)
    if isinstance(value, (tuple, list)):
        assert [type(item) for item in back] == [type(item) for item in value]
    if isinstance(value, np.ndarray):
        assert back.dtype == value.dtype
