"""Tabular control with known transitions: soft and hard planning, occupancy measures, the exploration that visits everything most evenly.

    mdp.py        MDP, from_gymnasium, gridworld      soft.py   soft value iteration, policy evaluation and iteration
    occupancy.py  where a policy goes                 explore.py   the occupancy of largest entropy

Shapes: S states, A actions, T steps of a finite horizon. Tensors are float64 on the CPU; transitions are SciPy's sparse arrays, row `s * A + a`.

>>> import gymnasium
>>> from entreg import planning
>>> mdp = planning.from_gymnasium(gymnasium.make("CliffWalking-v1"))
>>> for temperature in (0.0, 0.5, 2.0):                        # share of each row in the visits: further from the cliff the more entropy is worth
...     solution = planning.soft_value_iteration(mdp, gamma=0.99, temperature=temperature)
...     visits = planning.occupancy(mdp, solution.policy, gamma=0.99).sum(-1).view(4, 12)
...     print([round(share, 2) for share in (visits.sum(1) / visits.sum()).tolist()], round(float(solution.value[36]), 2))
[0.0, 0.0, 0.92, 0.08] -12.25
[0.16, 0.31, 0.44, 0.09] -10.67
[0.48, 0.34, 0.14, 0.04] 165.94
"""

from entreg.planning.explore import Exploration, max_occupancy_entropy
from entreg.planning.mdp import MDP, from_gymnasium, gridworld
from entreg.planning.occupancy import occupancy
from entreg.planning.soft import Solution, soft_backup, soft_policy_evaluation, soft_policy_iteration, soft_value_iteration

__all__ = [
    "MDP",
    "Exploration",
    "Solution",
    "from_gymnasium",
    "gridworld",
    "max_occupancy_entropy",
    "occupancy",
    "soft_backup",
    "soft_policy_evaluation",
    "soft_policy_iteration",
    "soft_value_iteration",
]
