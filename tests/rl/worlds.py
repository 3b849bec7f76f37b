"""Small environments that give a mistake away. Importing this module registers them: `tests.rl.worlds:Reveal-v0`."""

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import registry


class Reveal(gymnasium.Env):
    """Every number says where it is from: observation (episode, step), reward 100 * episode + step of the state acted in plus action / 10.

    Episodes last 1 to 5 steps, drawn from the environment's stream; every third one is truncated, the others terminate.
    A transition that no episode contains, a reward of the wrong state or a mixed-up ending breaks the arithmetic.
    """

    observation_space = spaces.Box(0.0, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.episode, self.t, self.end = -1, 0, 0

    def _see(self) -> np.ndarray:
        return np.array([self.episode, self.t], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        self.end = int(self.np_random.integers(1, 6))
        return self._see(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = 100.0 * self.episode + self.t + action / 10
        self.t += 1
        over = self.t == self.end
        cut = self.episode % 3 == 2
        return self._see(), reward, over and not cut, over and cut, {}


class Kept(Reveal):
    """`Reveal` that can say where it is."""

    def state_dict(self) -> dict[str, Any]:
        return {"where": [self.episode, self.t, self.end]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.episode, self.t, self.end = state["where"]


class Masked(gymnasium.Env):
    """Two of four actions, counted from 5, are legal and say so; another one is an error. After the last of 4 steps none is."""

    observation_space = spaces.Discrete(5, start=-2)
    action_space = spaces.Discrete(4, start=5)

    def __init__(self, empty_at: int = 4) -> None:
        self.t, self.empty_at = 0, empty_at

    def _mask(self) -> np.ndarray:
        legal = [0, 0, 0, 0] if self.t == self.empty_at else np.roll([1, 1, 0, 0], self.t)
        return np.array(legal, np.int8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return -2, {"action_mask": self._mask()}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert self._mask()[action - 5], f"action {action} is illegal at {self.t}"
        self.t += 1
        return self.t - 2, 1.0, self.t == 4, False, {"action_mask": self._mask()}


class Cut(gymnasium.Env):
    """Cut after 1 to 5 steps, drawn from its stream; after t steps the first t % 4 + 1 of four actions are legal, and the observation says t."""

    observation_space = spaces.Box(0.0, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(4)

    def __init__(self) -> None:
        self.t, self.end = 0, 0

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        return np.array([self.t], np.float32), {"action_mask": np.arange(4) <= self.t % 4}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.end = 0, int(self.np_random.integers(1, 6))
        return self._seen()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action <= self.t % 4, f"action {action} is illegal at {self.t}"
        self.t += 1
        seen, info = self._seen()
        return seen, 1.0, False, self.t == self.end, info


class MaskedHeads(gymnasium.Env):
    """Two heads of 3 and 2 classes with masks in a tuple; the reward is the action read as a number."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {"action_mask": (np.array([1, 0, 1], bool), np.array([0, 1], bool))}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 10.0 * action[0] + action[1], False, False, {"action_mask": (np.array([0, 1, 1]), np.array([1, 1]))}


class Echo(gymnasium.Env):
    """Gives samples of the observation space it is made with, rewards of a given kind, and keeps the action it got."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space = MaskedHeads.action_space, reward: float = 0.0) -> None:
        self.observation_space, self.action_space, self.reward, self.got = observation_space, action_space, reward, None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.got = action
        return self.observation_space.sample(), self.reward, False, False, {}


class Maze(gymnasium.Env):
    """Four states, three actions, no chance: where each action leads, and its reward; state 3 is the end. A tabular method can say everything about it."""

    NEXT = np.array([[1, 0, 2], [2, 0, 3], [3, 1, 0], [3, 3, 3]])
    REWARD = np.array([[0.0, -0.2, 0.3], [0.5, 0.1, 1.0], [1.5, 0.0, -0.5], [0.0, 0.0, 0.0]])
    observation_space = spaces.Discrete(4)
    action_space = spaces.Discrete(3)

    def __init__(self, longest: int = 10) -> None:
        self.state, self.t, self.longest = 0, 0, longest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.t = int(self.np_random.integers(3)), 0
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        reward, self.state = float(self.REWARD[self.state, action]), int(self.NEXT[self.state, action])
        self.t += 1
        return self.state, reward, self.state == 3, self.t == self.longest, {}


class Printed(Reveal):
    """`Reveal` that renders as text."""

    metadata: ClassVar = {"render_modes": ["ansi"]}

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> str:
        return f"episode {self.episode} step {self.t}"


class Broken(Printed):
    """`Reveal` whose renderer fails, as OpenGL does without a display."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}

    def render(self) -> str:
        raise RuntimeError("no display")


WORLDS = {
    "Reveal-v0": Reveal,
    "Kept-v0": Kept,
    "Masked-v0": Masked,
    "Cut-v0": Cut,
    "MaskedHeads-v0": MaskedHeads,
    "Echo-v0": Echo,
    "Maze-v0": Maze,
    "Printed-v0": Printed,
    "Broken-v0": Broken,
}
for name, world in WORLDS.items():
    if name not in registry:
        gymnasium.register(name, entry_point=world)
