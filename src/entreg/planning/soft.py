"""Soft (maximum-entropy) planning with known transitions, and hard planning at temperature 0.

Shapes: S states, A actions, T horizon. `V = max_p <p, Q> + temperature Omega(p)` and `Q = r + gamma E V(s')`, V = 0 in terminal states: no entropy after the
end. A finite horizon adds a leading dimension T to every result, step 0 first.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import linalg
from torch import Tensor

from entreg.functional._conjugate import kind_of
from entreg.functional.categorical import categorical_entropy_from_probs
from entreg.functional.families import SHANNON, Family
from entreg.functional.soft import value_and_policy
from entreg.planning.mdp import MDP

SWEEPS = 40  # evaluations between two improvements: 10^5 states at gamma .99 take 3.4 s, without them 102
DENSE, DIRECT = 200, 20_000  # states up to which a linear system is solved densely, and by sparse LU; above, by sweeps


class Solution(NamedTuple):
    """`value [S]`, `action_value [S, A]`, `policy [S, A]`; with a finite horizon `[T, S]`, `[T, S, A]`, `[T, S, A]`.

    `error` bounds the distance to the exact value; at gamma 1 without a horizon it is what the last backup moved, which is no bound.
    """

    value: Tensor
    action_value: Tensor
    policy: Tensor
    error: float
    rounds: int


def check(mdp: MDP, gamma: float, temperature: float, family: Family, horizon: int | None) -> None:
    """ValueError for a problem without a solution."""
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: got {gamma}, legal is 0 <= gamma <= 1")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature: got {temperature}, legal is a finite number >= 0 (0 is the hard maximum)")
    if temperature > 0:
        kind_of(family)
    if horizon is not None and (not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1):
        raise ValueError(f"horizon: got {horizon!r}, legal is an integer >= 1, or None")
    if gamma == 1 and horizon is None:
        stuck = (~mdp.ends()).nonzero()[:, 0]
        if len(stuck):
            raise ValueError(f"gamma: got 1, legal is less, or a finite horizon: from state {int(stuck[0])} no terminal state can be reached")


def greedy(mdp: MDP, action_value: Tensor, temperature: float, family: Family) -> tuple[Tensor, Tensor]:
    """Value `[S]`, 0 in terminal states, and policy `[S, A]` of action values; at temperature 0 the first of the best actions."""
    if temperature == 0:
        value, best = action_value.max(-1)
        policy = torch.nn.functional.one_hot(best, mdp.actions).double()
    else:
        value, policy = value_and_policy(action_value, temperature, family)
    return torch.where(mdp.terminal, 0, value), policy


def soft_backup(mdp: MDP, value: Tensor, *, gamma: float, temperature: float, family: Family = SHANNON) -> Tensor:
    """The soft Bellman operator, a contraction by gamma in the largest difference: `[S] -> [S]`."""
    return greedy(mdp, mdp.reward + gamma * mdp.expected(value), temperature, family)[0]


def soft_value_iteration(
    mdp: MDP,
    *,
    gamma: float,
    temperature: float,
    family: Family = SHANNON,
    horizon: int | None = None,
    tolerance: float = 1e-10,
    rounds: int = 100_000,
) -> Solution:
    """Value, action values and policy that maximise reward plus `temperature` times entropy, discounted by gamma.

    Between two backups the value is swept under the policy at hand (modified policy iteration), except at gamma 1. Ends when the value is within `tolerance`
    of the fixed point, or of what float64 can hold; at gamma 1 when a backup moves it by less. The policy is that of the action values returned, exactly.
    Temperature 0 is the hard maximum. Raises ValueError for gamma outside [0, 1], gamma 1 where some state cannot end, a family without a soft value, and
    where `rounds` backups do not suffice (at gamma 1 a loop may earn more entropy than it costs).

    >>> solution = soft_value_iteration(MDP([[0.0, 1.0], [1.0, 0.0]] * 2, [[0.0, 0.0], [0.0, 0.0]], [False, False], [1, 0]), gamma=0.5, temperature=1.0)
    >>> solution.value                                             # log 2 a step, twice that in all
    tensor([1.3863, 1.3863], dtype=torch.float64)

    Source: Ziebart 2010, algorithm 9.1 (soft maximum); Lee et al. 2018 (sparse); modified policy iteration: Puterman and Shin 1978.
    """
    check(mdp, gamma, temperature, family, horizon)
    value = torch.zeros(mdp.states, dtype=torch.float64)
    if horizon is not None:
        return _backwards(mdp, value, gamma, temperature, family, horizon)
    scale = gamma / (1 - gamma) if gamma < 1 else 1.0
    for done in range(1, rounds + 1):
        action_value = mdp.reward + gamma * mdp.expected(value)
        new, policy = greedy(mdp, action_value, temperature, family)
        moved = float((new - value).abs().max())
        value = new
        if moved * scale <= max(tolerance, 1e-15 * scale * float(value.abs().max())):
            action_value = mdp.reward + gamma * mdp.expected(value)
            value, policy = greedy(mdp, action_value, temperature, family)
            return Solution(value, action_value, policy, moved * scale * gamma, done)
        if gamma < 1:
            value = _swept(mdp, value, policy, gamma, temperature, family)
    raise ValueError(
        f"rounds: {rounds} backups did not converge, the last moved the value by {moved:.2g}; legal is a smaller gamma or temperature, or a horizon"
    )


def _backwards(mdp: MDP, value: Tensor, gamma: float, temperature: float, family: Family, horizon: int) -> Solution:
    steps = []
    for _ in range(horizon):
        action_value = mdp.reward + gamma * mdp.expected(value)
        value, policy = greedy(mdp, action_value, temperature, family)
        steps.append((value, action_value, policy))
    values, action_values, policies = (torch.stack(part[::-1]) for part in zip(*steps, strict=True))
    return Solution(values, action_values, policies, 0.0, horizon)


def _gain(mdp: MDP, policy: Tensor, temperature: float, family: Family) -> Tensor:
    """Expected reward of a step plus its entropy, `[S]`, 0 in terminal states."""
    reward = (policy * mdp.reward).sum(-1)
    gain = reward if temperature == 0 else reward + temperature * categorical_entropy_from_probs(policy, family)
    return torch.where(mdp.terminal, 0, gain)


def _swept(mdp: MDP, value: Tensor, policy: Tensor, gamma: float, temperature: float, family: Family) -> Tensor:
    """`value` after SWEEPS evaluations of a fixed policy."""
    move, gain, current = mdp.under(policy) * gamma, _gain(mdp, policy, temperature, family).numpy(), value.numpy()
    for _ in range(SWEEPS):
        current = gain + move @ current
    return torch.where(mdp.terminal, 0, torch.from_numpy(current))


def solve(move: sparse.csr_array, right: Tensor, gamma: float) -> Tensor:
    """`(I - gamma move)^-1 right`, `[S] -> [S]`: dense, by sparse LU or by sweeps, as the size asks."""
    states = len(right)
    try:
        if states <= DENSE:
            return torch.from_numpy(np.linalg.solve(np.eye(states) - gamma * move.toarray(), right.numpy()))
        if states <= DIRECT or gamma == 1:
            return torch.from_numpy(linalg.splu(sparse.csc_array(sparse.eye_array(states) - gamma * move)).solve(right.numpy()))
    except (np.linalg.LinAlgError, RuntimeError):  # how NumPy and SciPy call a singular matrix
        raise ValueError(f"gamma: got {gamma}, legal is less: under this policy an episode that never ends has no value") from None
    scaled, change = gamma * move, right.numpy()
    total = change.copy()
    while np.abs(change).max() > 1e-13 * (1 - gamma) * np.abs(total).max():  # the sum of a series
        change = scaled @ change
        total += change
    return torch.from_numpy(total)


def soft_policy_evaluation(mdp: MDP, policy: Tensor, *, gamma: float, temperature: float, family: Family = SHANNON, horizon: int | None = None) -> Solution:
    """The soft value and action values of a given `policy [S, A]` (with a horizon also `[T, S, A]`): its reward plus its entropy, solved exactly.

    Raises ValueError as `soft_value_iteration` does, and for a policy that is none.

    >>> mdp = MDP([[1.0], [1.0]], [[1.0, 0.0]], [False], [1.0])
    >>> soft_policy_evaluation(mdp, torch.tensor([[0.5, 0.5]]), gamma=0.5, temperature=0.0).value
    tensor([1.], dtype=torch.float64)
    """
    check(mdp, gamma, temperature, family, horizon)
    policy = checked_policy(mdp, policy, horizon)
    if horizon is None:
        value = solve(mdp.under(_live(mdp, policy)), _gain(mdp, policy, temperature, family), gamma)
        return Solution(value, mdp.reward + gamma * mdp.expected(value), policy, 0.0, 1)
    values, action_values, value = [], [], torch.zeros(mdp.states, dtype=torch.float64)
    for step in policy.flip(0):
        action_values.append(mdp.reward + gamma * mdp.expected(value))
        value = _gain(mdp, step, temperature, family) + torch.where(mdp.terminal, 0, (step * gamma * mdp.expected(value)).sum(-1))
        values.append(value)
    return Solution(torch.stack(values[::-1]), torch.stack(action_values[::-1]), policy, 0.0, horizon)


def soft_policy_iteration(
    mdp: MDP,
    *,
    gamma: float,
    temperature: float,
    family: Family = SHANNON,
    start: Tensor | None = None,
    tolerance: float = 1e-12,
    rounds: int = 1000,
) -> Solution:
    """The solution of `soft_value_iteration` by exact evaluation and improvement in turn: Newton's method, few rounds, each one linear system.

    `start [S]` is a first guess of the value, such as that for a reward nearby. Raises as `soft_value_iteration` does.

    Source: Haarnoja et al. 2018, section 4.1; as Newton's method: Geist et al. 2019, section 4.
    """
    check(mdp, gamma, temperature, family, None)
    value = torch.zeros(mdp.states, dtype=torch.float64) if start is None else torch.where(mdp.terminal, 0, start)
    near = tolerance if gamma == 1 else max(tolerance, 1e-15 / (1 - gamma))  # what the linear systems leave
    for done in range(1, rounds + 1):
        action_value = mdp.reward + gamma * mdp.expected(value)
        new, policy = greedy(mdp, action_value, temperature, family)
        moved = float((new - value).abs().max())
        if moved <= near * max(1.0, float(new.abs().max())):
            return Solution(new, action_value, policy, moved * (gamma / (1 - gamma) if gamma < 1 else 1.0), done)
        value = solve(mdp.under(_live(mdp, policy)), _gain(mdp, policy, temperature, family), gamma)
    raise ValueError(f"rounds: {rounds} policies did not converge, the last moved the value by {moved:.2g}; legal is a smaller gamma or temperature")


def _live(mdp: MDP, policy: Tensor) -> Tensor:
    """The policy with nothing in terminal states, so that mass ends there and systems stay regular at gamma 1."""
    return torch.where(mdp.terminal[:, None], 0, policy)


def checked_policy(mdp: MDP, policy: Tensor, horizon: int | None) -> Tensor:
    """`policy` in float64, `[S, A]`, with a horizon `[T, S, A]`; ValueError for one that is none."""
    policy = torch.as_tensor(policy, dtype=torch.float64).detach()
    shape = (mdp.states, mdp.actions)
    if policy.shape[-2:] != shape or policy.ndim not in ((2,) if horizon is None else (2, 3)) or (policy.ndim == 3 and len(policy) != horizon):
        raise ValueError(f"policy: got shape {tuple(policy.shape)}, legal is {shape}{'' if horizon is None else f', or {(horizon, *shape)}'}")
    if not bool((policy >= 0).all()) or float((policy.sum(-1) - 1).abs().max()) > 1e-9:
        raise ValueError("policy: got a row that does not sum to 1 or is negative, legal are probabilities")
    return policy if horizon is None or policy.ndim == 3 else policy.expand(horizon, *shape)
