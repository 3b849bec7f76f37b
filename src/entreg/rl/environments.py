"""Environments by name: `make` gives N = members * per_member of them, stepped together and reset in the same step.

Shapes: N environments, member-major (environment e of member m is row m * per_member + e); observations `[N, *shape]`, rewards `[N]`, masks `[N, A]`.
A member's environments depend on its own seed only, so that it sees in a population what it would see alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gymnasium.envs.registration import EnvSpec

from entreg.rl import naming
from entreg.rl.atari import Atari, is_picture
from entreg.rl.cartpole import CartPole
from entreg.rl.loops import AsyncEnvironments, SyncEnvironments
from entreg.rl.spaces import ActionSpec, ObservationSpec
from entreg.rl.stepping import Environments, Step, environment_seed

__all__ = ["ActionSpec", "Environments", "ObservationSpec", "Step", "make"]

Mode = Literal["auto", "sync", "async"]


def make(env: str, *, seeds: Sequence[int], per_member: int, first: int = 0, mode: Mode = "auto", env_kwargs: Mapping[str, Any] | None = None) -> Environments:
    """The environments of a population: `per_member` for each member's seed, of a Gymnasium id or `module:Id`, counted from `first`.

    `mode` "auto" takes the vectorised CartPole or Atari game where that is meant and a loop in this process elsewhere; "sync" always the loop,
    "async" one process an environment. All three give the same numbers; games are for "auto". `env_kwargs` go to the environment (and
    `max_episode_steps` to its time limit).

    Raises:
        ValueError: an unknown id (naming close ones), an argument out of range, a space that is not supported.
        ImportError: a package the environment needs is not installed, naming the extra.

    >>> import numpy as np
    >>> environments = make("FrozenLake-v1", seeds=[0, 1], per_member=2)
    >>> environments.n, environments.observation_spec, environments.action_spec.sizes
    (4, ObservationSpec(shape=(16,), image=False), (4,))
    >>> observation, mask = environments.reset()
    >>> step = environments.step(np.array([1, 1, 2, 2]))
    >>> step.observation.sum(axis=1).tolist(), step.final_observation
    ([1.0, 1.0, 1.0, 1.0], None)
    >>> environments.close()
    """
    if mode not in ("auto", "sync", "async"):
        raise ValueError(f"mode must be 'auto', 'sync' or 'async', got {mode!r}")
    if per_member < 1:
        raise ValueError(f"per_member must be at least 1, got {per_member}")
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds must be one or more integers >= 0, got {list(seeds)}")
    spec, notes = naming.find(env)
    kwargs = dict(env_kwargs or {})
    own = [environment_seed(seed, index) for seed in seeds for index in range(first, first + per_member)]
    if is_picture(spec, kwargs):
        if mode != "auto":
            raise ValueError(f"{spec.id} runs in a vector environment of its own: mode must be 'auto', got {mode!r}")
        return Atari(spec, own, kwargs, notes)
    if mode == "async":
        return AsyncEnvironments(spec, own, kwargs, notes)
    if mode == "auto" and _is_cartpole(spec, kwargs):
        limit = kwargs.get("max_episode_steps", spec.max_episode_steps)
        sutton_barto = {**spec.kwargs, **kwargs}.get("sutton_barto_reward", False)
        return CartPole(own, max_steps=limit if limit and limit > 0 else None, sutton_barto_reward=sutton_barto, notes=notes)
    return SyncEnvironments(spec, own, kwargs, notes)


def _is_cartpole(spec: EnvSpec, kwargs: Mapping[str, Any]) -> bool:
    known = {"sutton_barto_reward", "max_episode_steps"}
    plain = not spec.additional_wrappers and known >= set(kwargs) | set(spec.kwargs) and all(isinstance(value, int) for value in kwargs.values())
    return spec.entry_point == "gymnasium.envs.classic_control.cartpole:CartPoleEnv" and plain
