"""The state of an environment as plain data, for the environments of which every changing attribute is known.

A state is JSON: each attribute with its exact type, because NumPy's promotion rules make `np.float32(x)` and `x` continue differently.
What is not listed here (and does not offer `Restorable` itself) is not guessed at: `capture` gives None, and the caller starts a new episode.
"""

import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import wrappers

from entreg.rl.stepping import generator_from, generator_state

_CONTROL, _TOY = "gymnasium.envs.classic_control", "gymnasium.envs.toy_text"
# what changes in an environment after its construction, its random generator apart
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    f"{_CONTROL}.cartpole.CartPoleEnv": ("state", "steps_beyond_terminated"),
    f"{_CONTROL}.acrobot.AcrobotEnv": ("state",),
    f"{_CONTROL}.mountain_car.MountainCarEnv": ("state",),
    f"{_CONTROL}.continuous_mountain_car.Continuous_MountainCarEnv": ("state",),
    f"{_CONTROL}.pendulum.PendulumEnv": ("state", "last_u"),
    f"{_TOY}.frozen_lake.FrozenLakeEnv": ("s", "lastaction"),
    f"{_TOY}.cliffwalking.CliffWalkingEnv": ("s", "lastaction"),
    f"{_TOY}.taxi.TaxiEnv": ("s", "lastaction", "fickle_step", "taxi_orientation"),
    f"{_TOY}.blackjack.BlackjackEnv": ("player", "dealer", "dealer_top_card_suit", "dealer_top_card_value_str"),
}
# wrappers, exactly these classes, and what changes in them
WRAPPERS: dict[type, tuple[str, ...]] = {
    wrappers.TimeLimit: ("_elapsed_steps",),
    wrappers.OrderEnforcing: ("_has_reset",),
    wrappers.ClipAction: (),
    wrappers.RescaleAction: (),
    wrappers.ClipReward: (),
    wrappers.FlattenObservation: (),
    wrappers.FilterObservation: (),
    wrappers.ReshapeObservation: (),
    wrappers.RescaleObservation: (),
    wrappers.DtypeObservation: (),
}


@runtime_checkable
class Restorable(Protocol):
    """An environment that can say where it is, in JSON values, and go on from there (its random generator apart)."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def capture(env: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
    """Where an environment is, as JSON values; None where that cannot be said completely.

    >>> env = gymnasium.make("Pendulum-v1", disable_env_checker=True)
    >>> _ = env.reset(seed=0)
    >>> capture(env)["attributes"]["last_u"] is None
    True
    """
    layers = _layers(env)
    if layers is None:
        return None
    generator = generator_state(env.unwrapped.np_random)
    try:
        inner = _base_state(env.unwrapped)
        outer = [{name: encode(getattr(layer, name)) for name in WRAPPERS[type(layer)]} for layer in layers]
        json.dumps(inner)
    except TypeError:  # something that is not plain data has been put there
        return None
    return None if generator is None or inner is None else {"wrappers": outer, "generator": generator, "attributes": inner}


def restore(env: gymnasium.Env[Any, Any], state: Mapping[str, Any]) -> None:
    """Put a fresh environment, made as the captured one was, where that one was."""
    layers = _layers(env)
    if layers is None or len(layers) != len(state["wrappers"]):
        raise ValueError(f"environment {env} is not the one this state was taken from, or cannot be restored")
    base = env.unwrapped
    for layer, attributes in zip(layers, state["wrappers"], strict=True):
        for name, value in attributes.items():
            setattr(layer, name, decode(value))
    base.np_random = generator_from(state["generator"])
    if isinstance(base, Restorable):
        base.load_state_dict(state["attributes"])
        return
    for name, value in state["attributes"].items():
        setattr(base, name, decode(value))


def _layers(env: gymnasium.Env[Any, Any]) -> list[gymnasium.Wrapper[Any, Any, Any, Any]] | None:
    """The wrappers from the outside in; None when one of them is not known."""
    layers = []
    while isinstance(env, gymnasium.Wrapper):
        if type(env) not in WRAPPERS:
            return None
        layers.append(env)
        env = env.env
    return layers


def _base_state(base: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
    if isinstance(base, Restorable):
        return base.state_dict()
    names = ATTRIBUTES.get(f"{type(base).__module__}.{type(base).__qualname__}")
    if names is None or _random_map(base):
        return None
    return {name: encode(getattr(base, name)) for name in names}


def _random_map(base: gymnasium.Env[Any, Any]) -> bool:
    """FrozenLake with `map_name=None` draws its map when it is made, from a stream that nobody can name."""
    arguments = base.spec.kwargs if base.spec is not None else {}
    return type(base).__name__ == "FrozenLakeEnv" and arguments.get("desc") is None and arguments.get("map_name", "") is None


def encode(value: Any) -> Any:
    """An attribute as JSON that keeps its type.

    >>> encode((np.float32(0.5), 2))
    {'tuple': [{'float32': 0.5}, 2]}
    >>> decode(encode(np.arange(2)))
    array([0, 1])
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.str_):
        return str(value)
    if isinstance(value, np.generic):
        return {value.dtype.name: value.item()}
    if isinstance(value, np.ndarray):
        return {"array": value.ravel().tolist(), "dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [encode(item) for item in value]}
    raise TypeError(f"value {value!r} of type {type(value).__name__} has no plain form")


def decode(value: Any) -> Any:
    """The attribute of `encode`, with its type."""
    if not isinstance(value, Mapping):
        return value
    if "array" in value:
        return np.array(value["array"], value["dtype"]).reshape(value["shape"])
    (name, content), *_ = value.items()
    if name in ("list", "tuple"):
        items = [decode(item) for item in content]
        return items if name == "list" else tuple(items)
    return np.dtype(name).type(content)
