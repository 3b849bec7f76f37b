"""DeepSea: a grid of N x N cells in which only N steps to the right in a row find the treasure, and each of them costs a little.

`--env DeepSea-v0 --env-kwargs '{"size": 10}'`. A policy that tries actions at random finds it with probability 2^-N; looking where nobody was takes some N^2
episodes. Which of the two actions is right differs from cell to cell, so that a network cannot prefer one everywhere.

Source: Osband et al. 2019 (arXiv:1703.07608), section 3.2 and appendix A; constants of bsuite (Osband et al. 2020).
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

COST, TREASURE = 0.01, 1.0  # of N steps to the right together; at the last one


class DeepSea(gymnasium.Env[np.ndarray, Any]):
    """One row down a step, N steps an episode; the state is a one-hot cell `(N N,)`. The best return is .99, going left always 0.

    >>> env = DeepSea(size=4)
    >>> _ = env.reset(seed=0)
    >>> round(sum(env.step(env.right[row, row])[1] for row in range(4)), 3)
    0.99
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  Gymnasium's

    def __init__(self, size: int = 10, mapping_seed: int = 0) -> None:
        if not 2 <= size <= 100:
            raise ValueError(f"size must be from 2 to 100, got {size}")
        self.size = size
        self.right = np.random.default_rng(mapping_seed).integers(0, 2, (size, size))  # which action goes right
        self.observation_space = spaces.Box(0.0, 1.0, (size * size,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.row = self.column = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.row = self.column = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = 0.0
        if action == self.right[self.row, self.column]:
            reward = -COST / self.size + (TREASURE if self.column == self.size - 1 else 0.0)
            self.column = min(self.column + 1, self.size - 1)
        else:
            self.column = max(self.column - 1, 0)
        self.row += 1
        return self._seen(), reward, self.row == self.size, False, {}

    def _seen(self) -> np.ndarray:
        """One cell is 1; none after the last row."""
        cells = np.zeros(self.size * self.size, np.float32)
        if self.row < self.size:
            cells[self.row * self.size + self.column] = 1.0
        return cells

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "column": self.column}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.row, self.column = state["row"], state["column"]


if "DeepSea-v0" not in gymnasium.registry:
    gymnasium.register("DeepSea-v0", entry_point="entreg.rl.deepsea:DeepSea")
