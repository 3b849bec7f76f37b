"""Small environments whose answer is known. Importing this module registers them: `tests.rl.small:Bandit-v0`."""

import gymnasium
import numpy as np
from gymnasium import spaces

REWARDS = (1.0, 0.6, 0.0)
ONE = np.zeros(1, dtype=np.float32)


class Bandit(gymnasium.Env):
    """One step, three actions; with entropy coefficient c the best policy is softmax(REWARDS / c)."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return ONE, {}

    def step(self, action):
        return ONE, REWARDS[action], True, False, {}


class Steady(gymnasium.Env):
    """Reward 1 for ever from a state that never changes, cut or terminated every 4th step: the value tells which."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, terminates=False):
        self.terminates = terminates
        self.t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return ONE, {}

    def step(self, action):
        self.t += 1
        end = self.t == 4
        return ONE, 1.0, end and self.terminates, end and not self.terminates, {}


class Turn(gymnasium.Env):
    """One continuous action in [-2, 2] of one step; the reward is highest at 1."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-2, 2, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return ONE, {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, dtype=np.float32)), action
        return ONE, -float((action[0] - 1) ** 2), True, False, {}


class Poisoned(gymnasium.Env):
    """CartPole's shape; after some steps one observation or reward is not a number."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, what="observation", after=200):
        self.what, self.left = what, after

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.left -= 1
        bad = np.nan if self.left < 0 else 0.0
        observation = np.full(2, bad if self.what == "observation" else 0.0, dtype=np.float32)
        return observation, (bad if self.what == "reward" else 1.0), False, self.left % 20 == 0, {}


class Picture(gymnasium.Env):
    """The bright half of an image is the right action; one step."""

    observation_space = spaces.Box(0, 255, (12, 12, 3), dtype=np.uint8)
    action_space = spaces.Discrete(2)

    def _draw(self):
        self.side = int(self.np_random.integers(2))
        image = np.zeros((12, 12, 3), dtype=np.uint8)
        image[:, 6 * self.side : 6 * self.side + 6] = 255
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action):
        reward = float(action == self.side)
        return self._draw(), reward, True, False, {}


for world in (Bandit, Steady, Turn, Poisoned, Picture):
    if f"{world.__name__}-v0" not in gymnasium.registry:
        gymnasium.register(f"{world.__name__}-v0", entry_point=world)
