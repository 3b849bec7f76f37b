"""Occupancy measures: how often a policy is in a state and takes an action there, discounted.

Shapes: S states, A actions, T horizon. Terminal states take no action, so they hold nothing.
"""

import torch
from scipy import sparse
from torch import Tensor

from entreg.functional.families import SHANNON
from entreg.planning.mdp import MDP
from entreg.planning.soft import check, checked_policy, solve


def occupancy(mdp: MDP, policy: Tensor, *, gamma: float, horizon: int | None = None, initial: Tensor | None = None) -> Tensor:
    """Expected discounted visits `sum_t gamma^t P(s_t = s, a_t = a)` of every state and action: `[S, A]`, with a horizon `[T, S, A]`, one slice a step.

    Without terminal states they sum to `1 / (1 - gamma)`; a slice sums to `gamma^t` times the probability that the episode still runs. `policy` is `[S, A]`,
    with a horizon also `[T, S, A]`. `initial` replaces the initial distribution: any real `[S]`, with a horizon also `[T, S]`, what enters at every step; the
    result is linear in it. Raises ValueError as `soft_policy_evaluation` does.

    >>> mdp = MDP([[1.0], [1.0]], [[1.0, 0.0]], [False], [1.0])
    >>> occupancy(mdp, torch.tensor([[0.25, 0.75]]), gamma=0.5)
    tensor([[0.5000, 1.5000]], dtype=torch.float64)

    Source: Puterman 1994, section 6.9.
    """
    check(mdp, gamma, 0.0, SHANNON, horizon)
    policy = checked_policy(mdp, policy, horizon)
    start = mdp.initial if initial is None else torch.as_tensor(initial, dtype=torch.float64)
    shapes = [(mdp.states,)] if horizon is None else [(mdp.states,), (horizon, mdp.states)]
    if tuple(start.shape) not in shapes:
        raise ValueError(f"initial: got shape {tuple(start.shape)}, legal is {' or '.join(map(str, shapes))}")
    live = torch.where(mdp.terminal, 0, start)
    if horizon is None:
        move = mdp.under(torch.where(mdp.terminal[:, None], 0, policy))
        visits = solve(sparse.csr_array(move.T), live, gamma)
        return torch.where(mdp.terminal, 0, visits)[:, None] * policy
    enters = live if live.ndim == 2 else torch.cat([live[None], live.new_zeros(horizon - 1, mdp.states)])
    backwards = sparse.csr_array(mdp.transitions.T)
    slices, arriving = [], torch.zeros(mdp.states, dtype=torch.float64)
    for step in range(horizon):
        taken = torch.where(mdp.terminal, 0, arriving + enters[step])[:, None] * policy[step]
        slices.append(taken)
        arriving = gamma * torch.from_numpy(backwards @ taken.reshape(-1).numpy())
    return torch.stack(slices)
