"""Rewards that a learner gives itself for what is new to it: curiosity (icm), distillation (rnd), counts, state entropy. For every on-policy recipe.

Shapes: M members, T steps, n environments of each, N = T n items of a member in time-major order, D observation, A numbers of an action.
The reward of step t is about the state that it led to. All of them are divided by the running standard deviation of their discounted sum, which does not
end with episodes (Burda et al. 2018, section 2.4), so that one coefficient serves all. `novelty.py` has the kinds without networks, `curiosity.py` the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from entreg.rl.curiosity import ICM, RND
from entreg.rl.heads import Head
from entreg.rl.normalize import RewardScaler
from entreg.rl.novelty import Count, StateEntropy
from entreg.rl.population import Streams
from entreg.rl.rollout import Experience
from entreg.rl.spaces import ObservationSpec

Kind = Literal["none", "icm", "rnd", "count", "state_entropy"]
_STREAM = 0x1C3  # tells these random numbers from those of the policy


class Bonus(Protocol):
    """One kind of reward; what it learns lies in its state."""

    def reward(self, before: np.ndarray, action: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Rewards `(M, N)` of going from observations `(M, N, *shape)` by actions `(M, N, A)` to observations; then learn from these transitions."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Settings(NamedTuple):
    """What a user may set; `order` and `k` are of state_entropy, `lr` of icm and rnd."""

    kind: Kind
    order: float
    k: int
    lr: float

    def check(self, processes: int = 1) -> None:
        """Raise `ValueError` for what cannot be meant, in a run of so many ranks."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"intrinsic must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.kind != "none" and processes > 1:
            raise ValueError(f"intrinsic must be none under torchrun, got {self.kind!r}: each of {processes} ranks would know only what it saw itself")
        if not 0 < self.order <= 1:
            raise ValueError(f"intrinsic_order must be in (0, 1], got {self.order}: above 1 the reward would fall with the distance")
        if self.k < 1:
            raise ValueError(f"intrinsic_k must be at least 1, got {self.k}")
        if not 0 < self.lr < np.inf:
            raise ValueError(f"intrinsic_lr must be positive and finite, got {self.lr}")


class Intrinsic:
    """The bonus of a population and its scale."""

    def __init__(self, settings: Settings, seeds: Sequence[int], environments: int, observation: ObservationSpec, head: Head, gamma: float) -> None:
        streams = Streams(seeds, _STREAM)
        self._streams, self._scaler = streams, RewardScaler(len(seeds), environments, gamma)
        self.bonus = _bonus(settings, seeds, streams, observation, head)

    def reward(self, experience: Experience) -> tuple[np.ndarray, np.ndarray]:
        """Scaled rewards `(M, T, n)` of a rollout, and their mean before scaling `(M,)`."""
        assert experience.before is not None and experience.after is not None
        shape = experience.reward.shape
        flat = (part.reshape(shape[0], -1, *part.shape[3:]) for part in (experience.before, experience.action, experience.after))
        raw = self.bonus.reward(*flat).reshape(shape)
        never = np.zeros_like(experience.terminated[:, 0])
        scaled = [self._scaler(raw[:, t], never) for t in range(shape[1])]
        return np.stack(scaled, axis=1).astype(np.float32), raw.mean(axis=(1, 2))

    def state_dict(self) -> dict[str, Any]:
        return {"bonus": self.bonus.state_dict(), "scaler": self._scaler.state_dict(), "streams": self._streams.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bonus.load_state_dict(state["bonus"])
        self._scaler.load_state_dict(state["scaler"])
        self._streams.load_state_dict(state["streams"])


def _bonus(settings: Settings, seeds: Sequence[int], streams: Streams, observation: ObservationSpec, head: Head) -> Bonus:
    if settings.kind == "icm":
        return ICM(seeds, streams, observation, head, settings.lr)
    if settings.kind == "rnd":
        return RND(seeds, streams, observation, settings.lr)
    if settings.kind == "count":
        return Count(streams, observation)
    return StateEntropy(seeds, observation, settings.k, settings.order)


def share(extrinsic: np.ndarray, intrinsic: np.ndarray) -> np.ndarray:
    """The part of the reward that is intrinsic, `(M, T, n), (M, T, n) -> (M,)`: sums of absolute values; 0 where there is no reward at all.

    >>> share(np.full((1, 2, 1), -3.0), np.full((1, 2, 1), 1.0))
    array([0.25])
    """
    inner, outer = np.abs(intrinsic).sum(axis=(1, 2)), np.abs(extrinsic).sum(axis=(1, 2))
    result: np.ndarray = inner / np.maximum(inner + outer, 1e-12)
    return result
