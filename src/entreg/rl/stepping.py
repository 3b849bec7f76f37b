"""What stepping many environments gives, whichever way they are stepped: `Step`, the `Environments` protocol, seeds and episode counts.

Shapes: N = members * per_member environments, member-major; A = classes over all heads; observations `[N, *shape]`.
An episode that ends is reset in the same step, so that every row is a transition of the environment and none is made up.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from entreg.rl.spaces import ActionSpec, ObservationSpec


class Step(NamedTuple):
    """One step of N environments; `observation` is what to act on next, `final_observation` what the ended episodes ended in.

    Where `terminated | truncated`, `observation` is the first one of the next episode; the value of a truncated state is that of
    `final_observation`, valid in those rows only and None when nothing ended. `episodes` holds (environment, return, length) of those that ended in this step.
    """

    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_observation: np.ndarray | None
    mask: np.ndarray | None
    final_mask: np.ndarray | None
    episodes: list[tuple[int, float, int]]

    @property
    def reached(self) -> np.ndarray:
        """The state each action led to, `[N, *shape]`: that of `final_observation` where an episode ended."""
        if self.final_observation is None:
            return self.observation
        ended = (self.terminated | self.truncated).reshape(-1, *[1] * (self.observation.ndim - 1))
        return np.where(ended, self.final_observation, self.observation)


class Environments(Protocol):
    """N environments stepped together, on fresh arrays every time.

    `notes` is what a user should be told once (a deprecated id, a dropped text), one line each.
    `state_dict` is None where open episodes cannot be restored.
    """

    n: int
    observation_spec: ObservationSpec
    action_spec: ActionSpec
    notes: tuple[str, ...]

    def reset(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Begin: the first observations `[N, *shape]` and masks `[N, A]`. Called once, before the first step."""
        ...

    def step(self, actions: np.ndarray) -> Step:
        """Step every environment by its action: `[N]` classes, `[N, heads]` classes or `[N, D]` numbers."""
        ...

    def state_dict(self) -> dict[str, Any] | None:
        """Everything needed to go on bit for bit: arrays and JSON values; None where an environment cannot be restored."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """Go on where `state` was taken; gives the current observations and masks, instead of `reset`."""
        ...

    def close(self) -> None:
        """Release windows and processes; a second call does nothing."""
        ...


def environment_seed(seed: int, index: int) -> int:
    """The seed of environment `index` of the member with `seed`: 31 bits (old simulators take no more) that depend on nothing else.

    >>> environment_seed(0, 0) == environment_seed(0, 0) != environment_seed(0, 1)
    True
    """
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)


class EpisodeCounter:
    """Returns and lengths of the open episodes of N environments."""

    def __init__(self, n: int) -> None:
        self.returns = np.zeros(n)
        self.lengths = np.zeros(n, np.int64)

    def update(self, reward: np.ndarray, ended: np.ndarray) -> list[tuple[int, float, int]]:
        """Count one step; gives and clears the episodes that `ended` (indices of environments)."""
        self.returns += reward
        self.lengths += 1
        if not ended.size:
            return []
        episodes = list(zip(ended.tolist(), self.returns[ended].tolist(), self.lengths[ended].tolist(), strict=True))
        self.returns[ended] = 0.0
        self.lengths[ended] = 0
        return episodes

    def state_dict(self) -> dict[str, Any]:
        return {"returns": self.returns.copy(), "lengths": self.lengths.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.returns = np.array(state["returns"], np.float64)
        self.lengths = np.array(state["lengths"], np.int64)


def checked_state(state: Mapping[str, Any], kind: str, n: int) -> None:
    """Raise ValueError unless `state` was taken from n environments of this kind."""
    if state.get("kind") != kind or state.get("n") != n:
        raise ValueError(f"state of {state.get('n')} environments of kind {state.get('kind')!r} cannot be loaded into {n} of kind {kind!r}")


def generator_state(generator: np.random.Generator) -> list[int] | None:
    """The state of a PCG64 as four integers (two of 128 bits); None for other generators."""
    state = generator.bit_generator.state
    if state["bit_generator"] != "PCG64":
        return None
    return [int(state["state"]["state"]), int(state["state"]["inc"]), int(state["has_uint32"]), int(state["uinteger"])]


def generator_from(state: list[int]) -> np.random.Generator:
    """The generator of `generator_state`.

    >>> generator = np.random.default_rng(0)
    >>> generator_from(generator_state(generator)).random() == generator.random()
    True
    """
    bits = np.random.PCG64(0)
    bits.state = {"bit_generator": "PCG64", "state": {"state": state[0], "inc": state[1]}, "has_uint32": state[2], "uinteger": state[3]}
    return np.random.Generator(bits)
