"""Environments that break when the variable ENTREG_TEST_FAULT says how. Importing this module registers them: `tests.rl.broken:Faulty-v0`, `FaultyTable-v0`."""

import os
import signal
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces

AFTER = 100  # steps of one environment that go well: whole rollouts, and a checkpoint after them


class Faulty(gymnasium.Env):
    """Episodes of 20 steps with reward 1; a fault comes in step AFTER of an environment of the process (`only`: the first one that creates the file)."""

    def __init__(self, continuous: bool = False, after: int = AFTER, only: str | None = None) -> None:
        self.observation_space = spaces.Sequence(spaces.Discrete(2)) if fault() == "space" else spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if continuous else spaces.Discrete(2)
        self.left, self.only, self.t = after, only, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.left, self.t = self.left - 1, self.t + 1
        what = fault() if self.left < 0 and self._chosen() else None
        if what == "raise":
            raise RuntimeError("the robot fell over")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "exit":
            os._exit(3)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), np.nan if what == "reward" else 1.0, False, self.t == 20, {}

    def _chosen(self):
        if self.only is None:
            return True
        try:
            Path(self.only).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class FaultyTable(Faulty):
    """A corridor of four states whose last ends it and pays 1, with its table of transitions; what breaks is `step` as above, or the table itself."""

    def __init__(self, after: int = AFTER) -> None:
        super().__init__(after=after)
        if fault() != "space":
            self.observation_space = spaces.Discrete(4)
        reward, chance = (np.nan if fault() == "reward" else 1.0), (0.5 if fault() == "probability" else 1.0)
        self.P = {s: {a: [(chance, to := max(0, min(s + 2 * a - 1, 3)), reward if to == 3 else 0.0, to == 3)] for a in range(2)} for s in range(4)}
        self.initial_state_distrib = np.eye(4)[0]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        *_, cut, info = super().step(action)
        _, self.state, reward, end = self.P[self.state][int(action)][0]
        return self.state, reward, end, cut, info


def fault():
    """What breaks: raise, reward, space, kill or exit, and probability in a table; None where nothing does."""
    return os.environ.get("ENTREG_TEST_FAULT")


if "Faulty-v0" not in gymnasium.registry:
    gymnasium.register("Faulty-v0", entry_point=Faulty)
    gymnasium.register("FaultyTable-v0", entry_point=FaultyTable, max_episode_steps=20)
