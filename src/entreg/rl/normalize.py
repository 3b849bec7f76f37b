"""Running moments of observations and of discounted returns, one set a member."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from entreg.rl.ranks import Ranks


class RunningMoments:
    """Mean and variance `[M, *shape]` of everything seen, merged batch by batch (Chan et al. 1979) in float64."""

    def __init__(self, members: int, shape: tuple[int, ...], ranks: Ranks | None = None) -> None:
        self._ranks = ranks
        self.mean = np.zeros((members, *shape))
        self.var = np.ones((members, *shape))
        self.count = 1e-4

    def update(self, batch: np.ndarray) -> None:
        """Merge a batch `[M, n, *shape]`."""
        mean, var, count = batch.mean(axis=1, dtype=np.float64), batch.var(axis=1, dtype=np.float64), batch.shape[1]
        if self._ranks is not None and self._ranks.part.of > 1:
            own, mean = mean, self._ranks.average(torch.from_numpy(mean.copy())).numpy()
            var, count = self._ranks.average(torch.from_numpy(var + (own - mean) ** 2)).numpy(), count * self._ranks.part.of
        total = self.count + count
        delta = mean - self.mean
        self.var = (self.var * self.count + var * count + delta**2 * self.count * count / total) / total
        self.mean = self.mean + delta * count / total
        self.count = total

    def normalise(self, batch: np.ndarray, clip: float = 10.0) -> np.ndarray:
        """`[M, n, *shape]` shifted and scaled, clipped, float32."""
        scaled = (batch - self.mean[:, None]) / np.sqrt(self.var[:, None] + 1e-8)
        return np.clip(scaled, -clip, clip).astype(np.float32)

    def member(self, index: int) -> dict[str, Any]:
        """The state of one member by itself."""
        return {"mean": self.mean[index : index + 1], "var": self.var[index : index + 1], "count": self.count}

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.var, self.count = state["mean"], state["var"], state["count"]


class RewardScaler:
    """Rewards divided by the standard deviation of the running discounted return, as stable-baselines3's VecNormalize does."""

    def __init__(self, members: int, environments: int, gamma: float, ranks: Ranks | None = None) -> None:
        self.gamma = gamma
        self.returns = np.zeros((members, environments))
        self.moments = RunningMoments(members, (), ranks)

    def __call__(self, reward: np.ndarray, done: np.ndarray, clip: float = 10.0) -> np.ndarray:
        """Scaled rewards `[M, n]`; `done` resets the running return of an environment."""
        self.returns = self.returns * self.gamma + reward
        self.moments.update(self.returns)
        self.returns = np.where(done, 0.0, self.returns)
        return np.clip(reward / np.sqrt(self.moments.var[:, None] + 1e-8), -clip, clip)

    def state_dict(self) -> dict[str, Any]:
        return {"returns": self.returns, "moments": self.moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.returns = state["returns"]
        self.moments.load_state_dict(state["moments"])
