"""Tabular worlds by name: a process, its true reward where that is known, how its states lie in the plane; features of its states; its policy as a network.

Shapes: S states, A actions, F features.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from entreg import planning
from entreg.planning import MDP
from entreg.rl import demonstrations, naming
from entreg.rl.acting import Policy
from entreg.rl.networks import Architecture
from entreg.rl.spaces import ActionSpec

GRIDWORLD = "gridworld"
MOVES = "<v>^"  # its actions
_DEFAULTS = {"size": 6, "slip": 0.1, "regions": 8}


class World(NamedTuple):
    """`truth [S, A]`, `regions [S, F]` (one-hot) and `grid` (rows, columns) where there are such; `states` is how many of S the environment counts."""

    mdp: MDP
    truth: Tensor | None
    regions: Tensor | None
    grid: tuple[int, int] | None
    states: int


def make(name: str, kwargs: Mapping[str, Any], seed: int) -> World:
    """The gridworld whose regions and reward are drawn from the seed, or a toy-text environment of Gymnasium.

    A region is the cells nearer to its centre than to any other; each has a standard normal reward.

    Raises: `ValueError` for names and arguments that make no world; `ImportError` as `naming.build` does.
    """
    if name != GRIDWORLD:
        try:
            spec, _ = naming.find(name)
        except ValueError as error:
            raise ValueError(f"{error}; {GRIDWORLD} is a world of our own") from error
        env, _ = naming.build(spec, kwargs)
        try:
            return _toy(env)
        finally:
            env.close()
    given = {**_DEFAULTS, **kwargs}
    size, slip, count = (given[key] for key in _DEFAULTS)
    if given.keys() != _DEFAULTS.keys() or type(size) is not int or type(count) is not int or type(slip) not in (int, float):
        raise ValueError(f"env_kwargs is {dict(kwargs)}; legal for {GRIDWORLD} are size and regions (integers) and slip (a number)")
    mdp = planning.gridworld(size, slip)
    if not 1 <= count <= mdp.states:
        raise ValueError(f"env_kwargs: regions is {count}; legal are 1 to {mdp.states}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x1A7]))
    cells = np.stack(np.divmod(np.arange(mdp.states), size), 1)
    centres = cells[rng.choice(mdp.states, count, replace=False)]
    nearest = np.square(cells[:, None] - centres).sum(-1).argmin(1)
    regions = torch.nn.functional.one_hot(torch.from_numpy(nearest), count).double()
    truth = (regions @ torch.from_numpy(rng.normal(size=count)))[:, None].repeat(1, mdp.actions)
    return World(mdp, truth, regions, (size, size), mdp.states)


def _toy(env: gymnasium.Env[Any, Any]) -> World:
    mdp = planning.from_gymnasium(env)
    inner: Any = env.unwrapped
    shape: tuple[int, ...] = getattr(getattr(inner, "desc", None), "shape", None) or getattr(inner, "shape", None) or ()
    states = int(inner.observation_space.n)
    grid = (int(shape[0]), int(shape[1])) if len(shape) == 2 and math.prod(shape) == states else None
    return World(mdp, mdp.reward, None, grid, states)


def features(name: str, world: World) -> Tensor:
    """One of each of `states`, `next_states` (expected: what is paid for entering) or `state_actions`; `regions`; or a .npy file: `[S, F]` or `[S, A, F]`.

    Raises: `ValueError` for other names, for regions where there are none, and for a file that does not fit.
    """
    states, actions = world.mdp.states, world.mdp.actions
    if name == "states":
        return torch.eye(states, dtype=torch.float64)
    if name == "next_states":
        return torch.from_numpy(world.mdp.transitions.toarray()).view(states, actions, states)
    if name == "state_actions":
        return torch.eye(states * actions, dtype=torch.float64).view(states, actions, -1)
    if name == "regions" and world.regions is not None:
        return world.regions
    if not name.endswith(".npy"):
        raise ValueError(f"features is {name!r}; legal are states, next_states, state_actions, a .npy file, and with {GRIDWORLD} regions")
    try:
        given = np.load(name, allow_pickle=False)
        fits = given.shape[:-1] in ((states,), (states, actions)) and given.size > 0 and given.dtype.kind in "iufb" and np.isfinite(given).all()
    except Exception as error:  # of NumPy and the system, whatever stands in the file
        raise ValueError(f"features: {name} is no readable .npy ({type(error).__name__}: {str(error)[:80]})") from None
    if not fits:
        legal = f"finite numbers [S, F] or [S, A, F], S = {states}, A = {actions}"
        raise ValueError(f"features: {name} is {given.shape} of {given.dtype}; legal are {legal}")
    return torch.from_numpy(given.astype(np.float64))


def as_network(policy: Tensor, value: Tensor) -> dict[str, Any]:
    """A policy `[S, A]` and its value `[S]` as `entreg.load` reads them: one layer on one-hot states, the logits its log-probabilities."""
    states, actions = policy.shape
    architecture = Architecture((states,), image=False, outputs=actions, hidden=())
    weights = {"actor.0.weight": policy.log().clamp(min=-1e4), "critic.0.weight": value[:, None]}
    biases = {"actor.0.bias": torch.zeros(actions), "critic.0.bias": torch.zeros(1)}
    spec = {"architecture": architecture._asdict(), "action": ActionSpec("discrete", (actions,))._asdict(), "squash": False}
    return {"spec": spec, "weights": {name: part.float() for name, part in (weights | biases).items()}, "normaliser": None}


def told(policy: Policy, config: Mapping[str, Any], world: int, count: int, seed: int, temperature: float) -> Iterator[str]:
    """Lines about `count` walks of a policy in the gridworld of seed `world`, and what it does in each cell.

    Returns are those of the true reward, which nobody knows where the demonstrations came from a file.
    """
    made = make(GRIDWORLD, config["env_kwargs"], world)
    assert made.truth is not None and made.grid is not None
    with torch.no_grad():
        logits = policy.network.actor(torch.eye(made.states)[None])[0].double()
    best = logits.argmax(-1)
    table = torch.nn.functional.one_hot(best, made.mdp.actions).double() if temperature == 0 else (logits / temperature).softmax(-1)
    if config["trajectories"] is None:
        walks = demonstrations.sample(made.mdp, table, count, config["horizon"], np.random.default_rng(seed))
        returns = made.truth.numpy()[walks.state, walks.action].reshape(count, -1).sum(1)  # no walk ends before the horizon
        for number, total in enumerate(returns, 1):
            yield f"episode {number}: return {total:.4g} in {config['horizon']} steps"
        yield f"return {returns.mean():.4g} +- {returns.std():.3g} over {count} episodes"
    yield f"most probable in each cell of the world of seed {world}:"
    for row in best.view(made.grid).tolist():
        yield " ".join(MOVES[action] for action in row)
