"""Environments by name: no made-up transition, members as they are alone, CartPole's numbers, masks, and answers to wrong names."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv

from entreg.rl.environments import Step, make
from entreg.rl.stepping import environment_seed

REVEAL = "tests.rl.worlds:Reveal-v0"
MASKED = "tests.rl.worlds:Masked-v0"


def run(environments, steps, actions=None):
    """The start and `steps` steps of seeded random legal actions."""
    generator = np.random.default_rng(0)
    observation, mask = environments.reset()
    result = []
    for _ in range(steps):
        draw = generator.random((environments.n, environments.action_spec.sizes[0]))
        chosen = np.argmax(draw if mask is None else draw * mask, axis=1) if actions is None else actions
        result.append(environments.step(chosen))
        mask = result[-1].mask
    environments.close()
    return observation, result


def assert_same(one: Step, other: Step):
    ended = one.terminated | one.truncated
    for name in ("observation", "reward", "terminated", "truncated", "mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name, strict=True)
    for name in ("final_observation", "final_mask"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        if first is not None:
            np.testing.assert_array_equal(first[ended], second[ended], err_msg=name, strict=True)
    assert one.episodes == other.episodes


# ---- the vectorised CartPole


@pytest.mark.parametrize("kwargs", [{}, {"sutton_barto_reward": True, "max_episode_steps": 12}])
def test_cartpole_is_gymnasiums_bit_for_bit(kwargs):
    vector, loop = (make("CartPole-v1", seeds=[3], per_member=11, mode=mode, env_kwargs=kwargs) for mode in ("auto", "sync"))
    assert type(vector) is not type(loop)
    observation, _ = vector.reset()
    np.testing.assert_array_equal(observation, loop.reset()[0], strict=True)
    generator, episodes, truncations = np.random.default_rng(0), 0, 0
    for t in range(900):
        steady = (observation[:, 2] + 0.3 * observation[:, 3] > 0).astype(np.int64)  # holds the pole up to the time limit
        actions = steady if t < 600 else generator.integers(0, 2, 11)
        step = vector.step(actions)
        assert_same(step, loop.step(actions))
        observation, episodes, truncations = step.observation, episodes + len(step.episodes), truncations + step.truncated.sum()
    assert truncations >= 5 and episodes > truncations + 10


def test_cartpole_starts_are_the_environments_own_stream():
    env = gymnasium.make("CartPole-v1")
    environments = make("CartPole-v1", seeds=[11], per_member=2)
    observation, _ = environments.reset()
    np.testing.assert_array_equal(observation[1], env.reset(seed=environment_seed(11, 1))[0])
    starts = [step.observation[1] for step in (environments.step(np.array([0, 0])) for _ in range(400)) if any(index == 1 for index, _, _ in step.episodes)]
    assert len(starts) > 20  # more than one block of starts
    for start in starts:
        np.testing.assert_array_equal(start, env.reset()[0])


# ---- members


@pytest.mark.parametrize("name", ["CartPole-v1", "FrozenLake-v1", REVEAL])
def test_a_member_sees_in_a_population_what_it_sees_alone(name):
    population = make(name, seeds=[5, 9], per_member=3)
    alone = make(name, seeds=[9], per_member=3)
    actions = np.array([1, 0, 1, 0, 1, 1])
    start, together = run(population, 120, actions)
    start_alone, single = run(alone, 120, actions[3:])
    np.testing.assert_array_equal(start[3:], start_alone)
    for one, other in zip(together, single, strict=True):
        np.testing.assert_array_equal(one.observation[3:], other.observation)
        np.testing.assert_array_equal(one.reward[3:], other.reward)
        assert [(i - 3, r, n) for i, r, n in one.episodes if i >= 3] == other.episodes


def test_environments_of_one_member_and_of_two_members_differ():
    observation, _ = make("CartPole-v1", seeds=[0, 1], per_member=2).reset()
    assert len({tuple(row) for row in observation.tolist()}) == 4


# ---- same-step autoreset


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_every_row_is_a_transition_of_the_environment(mode):
    actions = np.array([1, 0, 1])
    before, steps = run(make(REVEAL, seeds=[2], per_member=3, mode=mode), 60, actions)
    total, length, kinds = np.zeros(3), np.zeros(3, int), set()
    for step in steps:
        ended = step.terminated | step.truncated
        np.testing.assert_allclose(step.reward, 100 * before[:, 0] + before[:, 1] + actions / 10)  # of the state acted in, in every row
        after = step.observation.copy()
        if ended.any():
            after[ended] = step.final_observation[ended]
        np.testing.assert_array_equal(after, before + np.array([0, 1]))
        np.testing.assert_array_equal(step.observation[ended], (before[ended] + [1, 0]) * [1, 0])
        np.testing.assert_array_equal(step.truncated[ended], before[ended, 0] % 3 == 2)
        assert not (step.terminated & step.truncated).any()
        total, length = total + step.reward, length + 1
        assert step.episodes == [(i, pytest.approx(total[i]), length[i]) for i in np.flatnonzero(ended)]
        total[ended], length[ended] = 0, 0
        kinds |= {"none" if not ended.any() else "some"} | ({"cut"} if step.truncated.any() else set())
        assert ended.any() == (step.final_observation is not None)
        before = step.observation
    assert kinds == {"none", "some", "cut"}


def test_processes_give_the_numbers_of_the_loop():
    for name in (MASKED, "FrozenLake-v1"):
        start, steps = run(make(name, seeds=[4], per_member=2, mode="async"), 25)
        start_sync, steps_sync = run(make(name, seeds=[4], per_member=2, mode="sync"), 25)
        np.testing.assert_array_equal(start, start_sync, strict=True)
        for one, other in zip(steps, steps_sync, strict=True):
            assert_same(one, other)


def test_processes_close_twice_and_have_no_state():
    environments = make(REVEAL, seeds=[0], per_member=2, mode="async")
    environments.reset()
    workers = list(environments._vector.processes)
    assert environments.state_dict() is None
    with pytest.raises(ValueError, match="cannot be restored"):
        environments.load_state_dict({})
    environments.close()
    environments.close()
    assert not any(worker.is_alive() for worker in workers)


def test_workers_leave_ctrl_c_to_the_main_process_and_end_on_sigterm():
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # what a run installs to save itself, and a forked worker inherits
    try:
        environments = make(REVEAL, seeds=[0], per_member=2, mode="async")
    finally:
        signal.signal(signal.SIGTERM, before)
    environments.reset()
    workers = list(environments._vector.processes)
    os.kill(workers[0].pid, signal.SIGINT)
    assert environments.step(np.array([0, 0])).reward.tolist() == [0.0, 0.0]
    workers[0].terminate()
    workers[0].join(10)
    assert not workers[0].is_alive()
    environments.close()  # one of its workers is dead
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def test_what_is_given_is_the_callers():
    environments = make("FrozenLake-v1", seeds=[0], per_member=2)
    observation, _ = environments.reset()
    observation[...] = 7.0
    saved = environments.state_dict()["observation"]
    assert saved.max() == 1.0
    first = environments.step(np.array([0, 0]))
    kept = first.observation.copy()
    environments.step(np.array([2, 2]))
    np.testing.assert_array_equal(first.observation, kept)


# ---- masks


def test_masks_come_with_every_observation():
    start, steps = run(make(MASKED, seeds=[0], per_member=2), 9)  # the environment itself refuses illegal actions
    np.testing.assert_array_equal(start, np.eye(5, dtype=np.float32)[[0, 0]])
    np.testing.assert_array_equal(steps[0].mask, [[0, 1, 1, 0]] * 2)
    np.testing.assert_array_equal(steps[3].mask, [[1, 1, 0, 0]] * 2)  # of the next episode
    assert steps[3].final_mask.all() and steps[2].final_mask is None  # nothing was legal, so nothing is ruled out
    np.testing.assert_array_equal(steps[3].final_observation, np.eye(5, dtype=np.float32)[[4, 4]])


def test_masks_of_heads_are_joined():
    environments = make("tests.rl.worlds:MaskedHeads-v0", seeds=[0], per_member=2)
    _, mask = environments.reset()
    assert environments.action_spec.sizes == (3, 2)
    np.testing.assert_array_equal(mask, [[1, 0, 1, 0, 1]] * 2)
    step = environments.step(np.array([[2, 1], [0, 1]]))
    np.testing.assert_array_equal(step.mask, [[0, 1, 1, 1, 1]] * 2)
    assert step.reward.tolist() == [21.0, 1.0]


def test_a_state_without_legal_action_is_an_error():
    environments = make(MASKED, seeds=[0], per_member=2, env_kwargs={"empty_at": 1})
    environments.reset()
    with pytest.raises(ValueError, match=r"action_mask'\] of environment 0 allows no action in head 0"):
        environments.step(np.array([0, 0]))


# ---- what is not hidden, what is refused


def test_numbers_that_are_not_finite_pass_through():
    space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    environments = make("tests.rl.worlds:Echo-v0", seeds=[0], per_member=1, env_kwargs={"observation_space": space, "reward": np.nan})
    observation, _ = environments.reset()
    assert observation.dtype == np.float32 and np.isfinite(observation).all()
    assert np.isnan(environments.step(np.array([[0, 0]])).reward).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPol-v1", "env 'CartPol-v1' is not registered.*close: CartPole-v1"),
        ("Taxi-v1", "env 'Taxi-v1' is not registered.*close: Taxi-v"),
        ("Zzzzz-v0", "module:Id"),
        ("tests.rl.worlds:Reveel-v0", "close: Reveal-v0"),
        ("no_such_module:Foo-v0", "module 'no_such_module' cannot be imported"),
        ("a:b:Foo-v0", "cannot be imported"),
        ("", "not registered"),
    ],
)
def test_an_unknown_name_is_answered_with_known_ones(name, message):
    with pytest.raises(ValueError, match=message):
        make(name, seeds=[0], per_member=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_member": 0}, "per_member must be at least 1, got 0"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, -2]}, "seeds"),
        ({"mode": "fast"}, "mode must be 'auto', 'sync' or 'async', got 'fast'"),
        ({"env_kwargs": {"gravity": 1}}, "env_kwargs: CartPole-v1 takes no argument 'gravity'"),
        ({"env_kwargs": {"max_episode_steps": "x"}}, "env CartPole-v1 cannot be made with env_kwargs {'max_episode_steps': 'x'}: "),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make("CartPole-v1", **{"seeds": [0], "per_member": 1, **arguments})


def test_what_an_environment_cannot_be_made_with_is_one_line():
    with pytest.raises(ValueError, match=r"FrozenLake-v1 cannot be made with env_kwargs {'map_name': '9x9'}: KeyError: '9x9'"):
        make("FrozenLake-v1", seeds=[0], per_member=1, env_kwargs={"map_name": "9x9"})


def test_mujoco_writes_no_log_file_while_a_model_is_read(tmp_path):
    pytest.importorskip("mujoco")
    code = "from entreg.rl.environments import make; make('HalfCheetah-v5', seeds=[0], per_member=1).close()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "module"), [("ALE/Pong-v5", "ale_py"), ("MiniGrid-Empty-5x5-v0", "minigrid"), ("LunarLander-v3", "Box2D")])
def test_a_missing_package_names_its_extra(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.lunar_lander", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.bipedal_walker", raising=False)
    with pytest.raises(ImportError, match=rf"{name}.*needs {module}.*entreg\[rl\]") as caught:
        make(name, seeds=[0], per_member=1)
    assert "\n" not in str(caught.value)


def test_remarks_on_a_name_are_notes_not_warnings():
    assert make("CartPole-v0", seeds=[0], per_member=1).notes == ("CartPole-v0 is out of date, the current version is CartPole-v1",)
    assert make("CartPole-v1", seeds=[0], per_member=1).notes == ()
    unversioned = make("CartPole", seeds=[0], per_member=1)
    assert unversioned.notes == ("CartPole stands for CartPole-v1, its latest version",)
    assert unversioned.step is not None and type(unversioned) is type(make("CartPole-v1", seeds=[0], per_member=1))


def test_minigrids_text_is_dropped_and_said():
    pytest.importorskip("minigrid")
    environments = make("MiniGrid-Empty-5x5-v0", seeds=[0], per_member=1)
    observation, mask = environments.reset()
    assert observation.shape == (1, 4 + 7 * 7 * 3) and mask is None
    assert environments.notes == ("the observation's text mission is not given to the policy",)
    environments.close()


def test_warnings_of_the_making_are_notes(monkeypatch):
    def noisy():
        warnings.warn("the wind is not calibrated", stacklevel=1)
        warnings.warn("old internals", DeprecationWarning, stacklevel=1)
        return PendulumEnv()

    monkeypatch.setitem(gymnasium.registry, "Noisy-v0", gymnasium.envs.registration.EnvSpec("Noisy-v0", entry_point=noisy))
    assert make("Noisy-v0", seeds=[0], per_member=3).notes == ("the wind is not calibrated",)


def test_mujoco_writes_no_log_file(tmp_path, monkeypatch, capsys):
    mujoco = pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    environments = make("InvertedPendulum-v4", seeds=[0], per_member=1)
    assert environments.notes == ("InvertedPendulum-v4 is out of date, the current version is InvertedPendulum-v5",)
    environments.reset()
    world = environments._envs[0].unwrapped
    for _ in range(2):
        world.data.qvel[:] = np.nan
        mujoco.mj_step(world.model, world.data)
    environments.close()
    assert capsys.readouterr().err.count("MuJoCo: ") == 1
    assert not Path("MUJOCO_LOG.TXT").exists()
