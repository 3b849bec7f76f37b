"""Tabular control with known transitions: soft and hard planning, occupancy measures, the exploration that visits everything most evenly.

    mdp.py        MDP, from_gymnasium, gridworld      soft.py   soft value iteration, policy evaluation and iteration
    occupancy.py  where a policy goes                 explore.py   the occupancy of largest entropy

Shapes: S states, A actions, T steps of a finite horizon. Tensors are float64 on the CPU; transitions are SciPy's sparse arrays, row `s * A + a`.
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
