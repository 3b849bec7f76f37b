"""Atari: the vector environment, the plain one and Gymnasium's own wrappers show the same game; each frame of a rollout is held once."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from entreg.rl import atari, environments, episodes, naming, stacks
from entreg.rl.heads import head_for
from entreg.rl.rollout import Collector
from entreg.rl.spaces import FrameStack, ObservationSpec

pytest.importorskip("ale_py")

EXACT = {"repeat_action_probability": 0.0, "noop_max": 0}  # nothing random: the vector environment draws from streams of its own


def made(n=1, env="ALE/Breakout-v5", **kwargs):
    return environments.make(env, seeds=[0], per_member=n, env_kwargs=kwargs)


def played(game, world, steps):
    """Take the same actions in both and compare rewards and ends; gives the largest difference of observations, and when episodes ended."""
    observation, _ = game.reset()
    seen, _ = world.reset(seed=0)
    rng, differences, ends = np.random.default_rng(0), [], []
    for t in range(steps):
        differences.append(np.abs(observation[0].astype(int) - seen).max())
        action = rng.integers(4, size=1)
        step = game.step(action)
        seen, score, terminated, truncated, _ = world.step(int(action[0]))
        assert step.reward[0] == np.sign(score) and (step.terminated[0], step.truncated[0]) == (terminated, truncated)
        observation = step.observation
        if terminated or truncated:
            ends.append(t)
            differences.append(np.abs(step.final_observation[0].astype(int) - seen).max())
            seen, _ = world.reset()
    game.close()
    world.close()
    return max(differences), ends


def test_plain_environment_shows_what_the_vector_environment_shows():
    difference, ends = played(made(**EXACT), naming.build(naming.find("ALE/Breakout-v5")[0], EXACT)[0], 450)
    assert difference <= 1 and len(ends) == 2


def test_vector_environment_equals_gymnasiums_wrappers():
    pytest.importorskip("cv2")
    world = gymnasium.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    world = FrameStackObservation(AtariPreprocessing(world, noop_max=0), 4, padding_type="zero")
    assert played(made(**EXACT), world, 450)[0] == 0


def test_returns_are_scores_and_rewards_their_signs():
    game, rng = made(4, "ALE/Assault-v5", max_episode_steps=120), np.random.default_rng(1)
    raw = made(4, "ALE/Assault-v5", max_episode_steps=120, reward_clipping=False)
    game.reset()
    raw.reset()
    total, returns = np.zeros(4), []
    for _ in range(130):
        actions = rng.integers(7, size=4)
        step, unclipped = game.step(actions), raw.step(actions)
        np.testing.assert_array_equal(step.reward, np.sign(unclipped.reward))
        total += unclipped.reward
        assert step.episodes == unclipped.episodes
        returns += [(total[index], value) for index, value, _ in step.episodes]
        total[step.terminated | step.truncated] = 0
    assert returns and all(summed == value for summed, value in returns) and max(value for _, value in returns) > 20
    game.close()
    raw.close()


def test_limit_counts_the_agents_steps_and_cuts():
    found = episodes.evaluate(
        "ALE/Pong-v5", lambda observation, mask: np.zeros(len(observation), int), 2, 0, env_kwargs={"max_episode_steps": 50, "noop_max": 0}
    )
    assert [length for _, length in found] == [50, 50]
    game = made(1, "ALE/Pong-v5", max_episode_steps=50, noop_max=0)
    game.reset()
    last = [game.step(np.zeros(1, int)) for _ in range(50)][-1]
    assert last.truncated[0] and not last.terminated[0]
    game.close()


def test_steps_are_on_fresh_arrays_and_follow_the_seeds_alone(monkeypatch):
    def play(threads):
        monkeypatch.setattr(atari.os, "sched_getaffinity", lambda _: range(threads))
        game = environments.make("ALE/Pong-v5", seeds=[0, 1], per_member=2)
        seen = [game.reset()[0]]
        kept = seen[0].copy()
        seen += [game.step(np.full(4, t % 6)).observation for t in range(20)]
        np.testing.assert_array_equal(seen[0], kept)
        game.close()
        return np.stack(seen)

    one, two = play(1), play(2)
    np.testing.assert_array_equal(one, two)
    assert (one[-1, 0] != one[-1, 1]).any()


@pytest.mark.parametrize(
    ("mode", "kwargs", "words"),
    [
        ("auto", {"lives": 3}, "env_kwargs: ALE/Pong-v5 takes frameskip, .*, got lives"),
        ("auto", {"frameskip": (2, 5)}, "frameskip must be an integer of at least 1"),
        ("auto", {"repeat_action_probability": 1.0}, "repeat_action_probability must be at least 0 and below 1, got 1.0"),
        ("sync", {}, "mode must be 'auto', got 'sync'"),
    ],
)
def test_what_cannot_be_meant(mode, kwargs, words):
    with pytest.raises(ValueError, match=words):
        environments.make("ALE/Pong-v5", seeds=[0], per_member=1, mode=mode, env_kwargs=kwargs)


def test_named_observation_types_are_gymnasiums():
    game = made(1, obs_type="ram")
    assert game.observation_spec.shape == (128,)
    game.close()


class Counting:
    """Stacks of 2 x 3 pictures that say where they are from: episode and time; episodes end after 1, 2, 3, ... steps, by turns terminated and cut."""

    def __init__(self, n):
        self.n, self.observation_spec, self.action_spec, self.notes = n, FrameStack((4, 2, 3), image=True), environments.ActionSpec("discrete", (2,)), ()
        self.episode, self.t = np.arange(n), np.zeros(n, int)
        self.stack = np.zeros((n, 4, 2, 3), np.uint8)
        self.naive = []

    def _frame(self, e):
        return np.full((2, 3), 1 + 20 * self.episode[e] + self.t[e])

    def _begin(self, e):
        self.t[e] = 0
        self.stack[e] = 0
        self.stack[e, -1] = self._frame(e)

    def reset(self):
        for e in range(self.n):
            self._begin(e)
        self.naive.append(self.stack.copy())
        return self.stack.copy(), None

    def step(self, actions):
        ended, final = np.zeros(self.n, bool), np.zeros_like(self.stack)
        for e in range(self.n):
            self.t[e] += 1
            self.stack[e] = np.concatenate([self.stack[e, 1:], self._frame(e)[None]])
            if self.t[e] > self.episode[e] % 6:
                ended[e], final[e] = True, self.stack[e]
                self.episode[e] += 1
                self._begin(e)
        self.naive.append(self.stack.copy())
        cut = ended & (self.episode % 2 == 0)
        return environments.Step(self.stack.copy(), np.zeros(self.n), ended & ~cut, cut, final if ended.any() else None, None, None, [])


def test_stacks_of_a_rollout_are_the_naive_ones_across_borders_of_episodes_and_rollouts():
    world = Counting(4)
    collector = Collector(world, 2, head_for(world.action_spec), normalise_observation=False, reward_scaler=None)
    noise = np.zeros((2, 9, 2, 1), np.float32)
    for first in (0, 9):
        made = collector.collect(lambda observation, drawn, mask: np.zeros((*drawn.shape[:-1], 1), int), noise, lambda **values: None)
        naive = np.stack(world.naive[first : first + 9]).reshape(9, 2, 2, 4, 2, 3).swapaxes(0, 1)
        np.testing.assert_array_equal(made.observation.tensor().reshape(naive.shape), naive)
        order = torch.tensor([[3, 17, 3], [0, 5, 9]])
        np.testing.assert_array_equal(made.observation.take(order).tensor()[1], naive[1].reshape(18, 4, 2, 3)[[0, 5, 9]])
        assert made.observation.frames.shape == (1 + 2 * 2 * (9 + 3), 2, 3)  # each frame once, the three before the rollout, and the blank one
    assert (np.stack(world.naive)[10, :, 0] == 0).any() and len(made.final)


def test_frames_are_kept_by_who_holds_them():
    store = stacks.Frames(1, 1, 1, ObservationSpec((4, 2, 2), image=True))
    given = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 2, 2)
    store.write(0, given, np.ones((1, 1), bool))
    given[:] = 0
    assert store.stacks().tensor().flatten().tolist() == list(range(16))
