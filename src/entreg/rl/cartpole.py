"""CartPole for N environments in one NumPy call, the numbers of `gymnasium.make("CartPole-v1")`, reset in the same step.

Shapes: N environments; the state is `[4, N]` float64 (position, velocity, angle, angular velocity).
Gymnasium's own vector CartPole inserts a made-up transition after every episode and draws all resets from one stream:
with it a member would depend on its neighbours.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entreg.rl.spaces import ActionSpec, ObservationSpec
from entreg.rl.stepping import EpisodeCounter, Step, checked_state, generator_from, generator_state

GRAVITY, MASS_POLE, MASS_TOTAL, HALF_LENGTH, FORCE, TAU = 9.8, 0.1, 0.1 + 1.0, 0.5, 10.0, 0.02
POLE_MOMENT = MASS_POLE * HALF_LENGTH
BLOCK = 16  # starts drawn at once: 0.3 us an episode instead of 3


class CartPole:
    """N carts, cart i drawing its starts from `seeds[i]` alone, exactly those of `gymnasium.make(...).reset(seed=seeds[i])`.

    Source: Barto, Sutton and Anderson (1983), as in `gymnasium.envs.classic_control.cartpole.CartPoleEnv` (explicit Euler, the same order of operations).

    >>> carts = CartPole([7, 8], max_steps=500)
    >>> observation, mask = carts.reset()
    >>> step = carts.step(np.array([0, 1]))
    >>> step.observation.shape, step.reward.tolist(), mask
    ((2, 4), [1.0, 1.0], None)
    """

    def __init__(self, seeds: Sequence[int], *, max_steps: int | None, sutton_barto_reward: bool = False, notes: tuple[str, ...] = ()) -> None:
        self.n = len(seeds)
        self.observation_spec = ObservationSpec((4,), image=False)
        self.action_spec = ActionSpec("discrete", (2,))
        self.notes = notes
        self._sutton_barto = sutton_barto_reward
        self._max_steps = np.iinfo(np.int64).max if max_steps is None else max_steps
        self._generators = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))) for seed in seeds]
        self._starts = np.empty((self.n, BLOCK, 4))
        self._next = np.full(self.n, BLOCK)
        self._state = np.empty((4, self.n))
        self._rate = np.empty((4, self.n))
        self._work = np.empty((4, self.n))
        self._bounds = np.array([[2.4], [12 * 2 * math.pi / 360]])
        self._counter = EpisodeCounter(self.n)

    def reset(self) -> tuple[np.ndarray, None]:
        self._start(np.arange(self.n))
        return self._observation(), None

    def _start(self, which: np.ndarray) -> None:
        """New starts for the environments `which`, each from its own stream."""
        for i in which[self._next[which] == BLOCK].tolist():
            self._starts[i] = self._generators[i].uniform(-0.05, 0.05, (BLOCK, 4))
            self._next[i] = 0
        self._state[:, which] = self._starts[which, self._next[which]].T
        self._next[which] += 1

    def _observation(self) -> np.ndarray:
        observation: np.ndarray = self._state.T.astype(np.float32, order="C")
        return observation

    def step(self, actions: np.ndarray) -> Step:
        self._move(actions)
        beyond = np.abs(self._state[::2], out=self._work[:2]) > self._bounds
        terminated: np.ndarray = beyond[0] | beyond[1]
        observation = self._observation()
        reward = np.negative(terminated, dtype=np.float64) if self._sutton_barto else np.ones(self.n)
        truncated: np.ndarray = self._counter.lengths >= self._max_steps - 1
        ended = (terminated | truncated).nonzero()[0]
        episodes = self._counter.update(reward, ended)
        if not episodes:
            return Step(observation, reward, terminated, truncated, None, None, None, episodes)
        self._start(ended)
        return Step(self._observation(), reward, terminated, truncated, observation, None, None, episodes)

    def _move(self, actions: np.ndarray) -> None:
        """Advance the state by one Euler step; every product in the order in which CartPoleEnv computes it, so that the bits agree."""
        state, rate = self._state, self._rate
        cos, sin, temp, bottom = np.cos(state[2]), np.sin(state[2]), self._work[2], self._work[3]
        force = np.multiply(actions, 2.0 * FORCE)
        force -= FORCE
        np.square(state[3], out=temp)
        temp *= POLE_MOMENT
        temp *= sin
        temp += force
        temp /= MASS_TOTAL
        np.square(cos, out=bottom)
        bottom *= MASS_POLE
        bottom /= MASS_TOTAL
        np.subtract(4.0 / 3.0, bottom, out=bottom)
        bottom *= HALF_LENGTH
        sin *= GRAVITY
        sin -= np.multiply(cos, temp, out=force)
        angular = np.divide(sin, bottom, out=rate[3])
        np.multiply(angular, POLE_MOMENT, out=bottom)
        bottom *= cos
        bottom /= MASS_TOTAL
        np.subtract(temp, bottom, out=rate[1])
        rate[::2] = state[1::2]
        rate *= TAU
        state += rate

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "cartpole",
            "n": self.n,
            "state": self._state.copy(),
            "starts": self._starts.copy(),
            "next": self._next.copy(),
            "generators": [generator_state(generator) for generator in self._generators],
            "counter": self._counter.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> tuple[np.ndarray, None]:
        checked_state(state, "cartpole", self.n)
        self._state = np.array(state["state"], np.float64)
        self._starts = np.array(state["starts"], np.float64)
        self._next = np.array(state["next"], np.int64)
        self._generators = [generator_from(entry) for entry in state["generators"]]
        self._counter.load_state_dict(state["counter"])
        return self._observation(), None

    def close(self) -> None:
        pass
