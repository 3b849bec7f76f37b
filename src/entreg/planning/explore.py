"""The policy whose occupancy is most spread out: reward-free exploration with known transitions, by Frank-Wolfe.

Shapes: S states, A actions. An occupancy here is a distribution, `(1 - gamma)` times the discounted visits; where an episode ends another begins.
"""

from typing import Literal, NamedTuple

import torch
from scipy import optimize, sparse
from torch import Tensor

from entreg.functional.categorical import categorical_entropy_from_probs
from entreg.functional.families import renyi, tsallis
from entreg.planning.mdp import MDP
from entreg.planning.occupancy import occupancy
from entreg.planning.soft import soft_policy_iteration


class Exploration(NamedTuple):
    """`policy [S, A]`, its `occupancy [S, A]` (sums to 1), the Rényi `entropy` of it in nats, a `bound` that no policy exceeds, and rounds taken.

    `gap` is the duality gap in the Tsallis entropy of the same order, in which the problem is concave at every order.
    """

    policy: Tensor
    occupancy: Tensor
    entropy: float
    bound: float
    gap: float
    rounds: int


def max_occupancy_entropy(
    mdp: MDP, order: float = 1.0, gamma: float = 0.99, *, over: Literal["state", "state_action"] = "state_action", tolerance: float = 1e-3, rounds: int = 2000
) -> Exploration:
    """The policy whose discounted occupancy has the largest Rényi entropy of `order`, over state-actions or states.

    Each round plans (temperature 0) for the entropy's gradient as reward and goes towards what it finds as far as a line search says; it ends when the
    duality gap is at most `tolerance`. States that cannot be reached do not count. What ends an episode leads to the initial distribution; terminal states,
    in which nothing is done, hold nothing. The reward of the MDP is not used. Raises ValueError unless `0 < order < inf` and `0 <= gamma < 1`, and where
    `rounds` do not suffice.

    Source: Hazan et al. 2019, algorithm 1 (Shannon, states); Zhang et al. 2021 (Rényi, state-actions); Jaggi 2013, algorithm 1 (the gap).
    """
    if not 0 < order < float("inf") or not 0 <= gamma < 1:
        raise ValueError(f"order, gamma: got {order}, {gamma}, legal is 0 < order < inf and 0 <= gamma < 1")
    if over not in ("state", "state_action"):
        raise ValueError(f"over: got {over!r}, legal are 'state' and 'state_action'")
    world = _restarting(mdp)
    family = tsallis(order)

    def counted(visits: Tensor) -> Tensor:
        return visits.reshape(-1) if over == "state_action" else visits.sum(-1)

    def visits_of(policy: Tensor) -> Tensor:
        return (1 - gamma) * occupancy(world, policy, gamma=gamma)

    current = visits_of(torch.full_like(mdp.reward, 1 / mdp.actions))
    reached, value = counted(current) > 0, None
    for done in range(1, rounds + 1):
        p = torch.where(reached, counted(current), 1)
        pull = -p.log() - 1 if order == 1 else order * p ** (order - 1) / (1 - order)
        slope = torch.where(reached, pull - pull[reached].mean(), 0)  # a constant changes nothing, and would cost digits
        reward = slope.view(mdp.reward.shape) if over == "state_action" else slope[:, None].expand(mdp.reward.shape)
        plan = soft_policy_iteration(world.with_reward(reward), gamma=gamma, temperature=0.0, start=value)
        value, target = plan.value, visits_of(plan.policy)
        gap = float((reward * (target - current)).sum())
        if gap <= tolerance:
            held = current.sum(-1, keepdim=True)
            policy = torch.where(held > 0, current / held.clamp(min=1e-300), 1 / mdp.actions)
            entropy = float(categorical_entropy_from_probs(counted(current), renyi(order)))
            return Exploration(
                policy, current, entropy, _renyi_of(float(categorical_entropy_from_probs(counted(current), family)) + max(gap, 0), order), gap, done
            )
        step = optimize.minimize_scalar(
            lambda share, a=current, b=target: -float(categorical_entropy_from_probs(counted(a + share * (b - a)), family)),
            bounds=(0, 1 - 1e-9),  # never all the way: where nothing is held the slope has no bound
            method="bounded",
            options={"xatol": 1e-10},
        )
        current = current + float(step.x) * (target - current)
    raise ValueError(f"rounds: {rounds} did not close the gap, which is {gap:.2g}; legal is a larger tolerance, {tolerance} given")


def _renyi_of(tsallis_entropy: float, order: float) -> float:
    """Rényi from Tsallis at the same order; infinite where no distribution has so much."""
    if order == 1:
        return tsallis_entropy
    inside = torch.tensor(1 + (1 - order) * tsallis_entropy, dtype=torch.float64)
    return float(inside.log() / (1 - order)) if inside > 0 else float("inf")


def _restarting(mdp: MDP) -> MDP:
    """The process in which an end is a start: what leads to a terminal state leads to the initial distribution, and so do the terminal states."""
    ends = sparse.csr_array(mdp.transitions[:, mdp.terminal.numpy()].sum(1).reshape(-1, 1))
    kept = mdp.transitions @ sparse.diags_array((~mdp.terminal).numpy().astype(float))
    return MDP(kept + ends @ sparse.csr_array(mdp.initial.numpy()[None]), mdp.reward * 0, torch.zeros_like(mdp.terminal), mdp.initial)
