"""Small environments of continuous actions whose answer is known. Importing this module registers them: `tests.rl.continuous:Ruler-v0`."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Ruler(gymnasium.Env):
    """Observes its step number; every 4th step ends the episode, cut or terminated. A reward after `poison` steps is not a number."""

    observation_space = spaces.Box(0, 10, (1,))

    def __init__(self, terminates=False, bound=2.0, poison=10**9):
        self.action_space = spaces.Box(-bound, bound, (2,))
        self.terminates, self.left, self.t = terminates, poison, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def _seen(self):
        return np.full(1, self.t, dtype=np.float32)

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, dtype=np.float32)), action
        self.t, self.left = self.t + 1, self.left - 1
        end = self.t == 4
        return self._seen(), np.nan if self.left < 0 else 1.0, end and self.terminates, end and not self.terminates, {}


if "Ruler-v0" not in gymnasium.registry:
    gymnasium.register("Ruler-v0", entry_point=Ruler)
