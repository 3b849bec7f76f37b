"""A Markov decision process as tables: checked once, then trusted.

Shapes: S states, A actions. Row `s * A + a` of the transitions holds `p(s' | s, a)`. A terminal state keeps to itself and pays nothing; no value and no
entropy come after it. Time limits are no part of a process: a finite horizon is an argument of the planner.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

ROUNDING = 1e-9  # by which probabilities may miss 1


@dataclass(frozen=True, eq=False)
class MDP:
    """Transitions `[S*A, S]` (sparse), reward `[S, A]`, terminal `[S]` (bool) and initial distribution `[S]`.

    What is given as a dense matrix, an array or another dtype is converted. Raises ValueError for shapes that do not fit, values that are not finite, rows or
    an initial distribution that are no probabilities, and a terminal state that is left or pays.

    >>> mdp = MDP([[0.0, 1.0], [0.0, 1.0]], [[1.0], [0.0]], [False, True], [1.0, 0.0])
    >>> mdp.states, mdp.actions
    (2, 1)
    """

    transitions: Any  # sparse.csr_array
    reward: Tensor
    terminal: Tensor
    initial: Tensor

    def __post_init__(self) -> None:
        transitions = sparse.csr_array(self.transitions, dtype=np.float64)
        transitions.sum_duplicates()
        reward, initial = _floats("reward", self.reward), _floats("initial", self.initial)
        terminal = torch.as_tensor(self.terminal)
        if reward.ndim != 2 or 0 in reward.shape:
            raise ValueError(f"reward: got shape {tuple(reward.shape)}, legal is [S, A] with at least one state and action")
        states, actions = reward.shape
        if transitions.shape != (states * actions, states):
            raise ValueError(f"transitions: got shape {transitions.shape}, legal is [S*A, S] = ({states * actions}, {states}) for this reward")
        if terminal.dtype != torch.bool or terminal.shape != (states,):
            raise ValueError(f"terminal: got shape {tuple(terminal.shape)} of {terminal.dtype}, legal is a boolean [{states}]")
        if initial.shape != (states,):
            raise ValueError(f"initial: got shape {tuple(initial.shape)}, legal is [{states}]")
        if not np.isfinite(transitions.data).all() or (transitions.data < 0).any():
            raise ValueError("transitions: got a negative or not finite entry, legal are probabilities")
        _sums("transitions: row s*A + a =", np.asarray(transitions.sum(1)))
        if bool((initial < 0).any()):
            raise ValueError(f"initial: got {float(initial.min())}, legal are probabilities")
        _sums("initial:", np.array([float(initial.sum())]))
        if bool((reward[terminal] != 0).any()):
            raise ValueError("reward: got one that is not 0 in a terminal state, legal is 0 there")
        rows, columns = transitions.nonzero()
        left = terminal.numpy()[rows // actions] & (columns != rows // actions)
        if left.any():
            raise ValueError(f"transitions: got a terminal state, {int(rows[left][0]) // actions}, that is left; legal is one that keeps to itself")
        for name, value in (("transitions", transitions), ("reward", reward), ("terminal", terminal), ("initial", initial)):
            object.__setattr__(self, name, value)

    @property
    def states(self) -> int:
        """S."""
        return int(self.reward.shape[0])

    @property
    def actions(self) -> int:
        """A."""
        return int(self.reward.shape[1])

    def with_reward(self, reward: Tensor) -> "MDP":
        """The same process with another reward `[S, A]`, 0 in terminal states whatever is given there."""
        given = _floats("reward", reward)
        if given.shape != self.reward.shape:
            raise ValueError(f"reward: got shape {tuple(given.shape)}, legal is {tuple(self.reward.shape)}")
        made = object.__new__(MDP)  # the rest has been checked: a gradient step of inverse reinforcement learning makes one of these
        made.__dict__.update(self.__dict__, reward=torch.where(self.terminal[:, None], 0, given))
        return made

    def expected(self, value: Tensor) -> Tensor:
        """Expectation of a state's `value` after a step: `[S] -> [S, A]`."""
        return torch.from_numpy(self.transitions @ value.numpy()).view(self.states, self.actions)

    def under(self, policy: Tensor) -> sparse.csr_array:
        """Transitions between states under `policy [S, A]`: sparse `[S, S]`."""
        rows = np.repeat(np.arange(self.states), self.actions)
        weights = sparse.csr_array((policy.reshape(-1).numpy(), (rows, np.arange(len(rows)))), shape=(self.states, len(rows)))
        return sparse.csr_array(weights @ self.transitions)

    def ends(self) -> Tensor:
        """States from which a terminal one can be reached, `[S]`."""
        graph = self.under(torch.ones_like(self.reward))
        reached = self.terminal.numpy()
        while (more := reached | (graph @ reached.astype(np.float64) > 0)).sum() > reached.sum():
            reached = more
        return torch.from_numpy(reached)


def _floats(name: str, value: Any) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: got a value that is not finite, legal are finite numbers")
    return tensor


def _sums(name: str, sums: np.ndarray) -> None:
    wrong = np.flatnonzero(np.abs(sums - 1) > ROUNDING)
    if len(wrong):
        raise ValueError(f"{name} {f'{wrong[0]} ' if len(sums) > 1 else ''}sums to {sums[wrong[0]]:.9g}, legal is 1")


def from_gymnasium(env: Any) -> MDP:
    """The MDP of a toy-text environment (FrozenLake, CliffWalking, Taxi): its table `env.unwrapped.P` and its initial distribution.

    A state that only ending transitions enter is terminal. Where others enter it too (Taxi), the ending ones lead to one terminal state more, the last. The
    reward is the expectation over next states. A `TimeLimit` is ignored: truncation is no part of an MDP. Raises ValueError for an environment without such a
    table.

    >>> import gymnasium
    >>> mdp = from_gymnasium(gymnasium.make("FrozenLake-v1"))
    >>> mdp.states, mdp.actions, int(mdp.terminal.sum())
    (16, 4, 5)
    """
    inner = env.unwrapped
    table, initial = getattr(inner, "P", None), getattr(inner, "initial_state_distrib", None)
    if table is None or initial is None:
        missing = "table of transitions P" if table is None else "initial_state_distrib"
        raise ValueError(f"env: {env.spec.id if env.spec else type(inner).__name__} has no {missing}, legal are FrozenLake, CliffWalking, Taxi and their like")
    for what, space in (("observation", env.observation_space), ("action", env.action_space)):
        if getattr(space, "n", None) is None:
            raise ValueError(f"env: {what} space {space} is not supported; supported: Discrete, as in FrozenLake, CliffWalking, Taxi and their like")
    states, actions = int(env.observation_space.n), int(env.action_space.n)
    moves = [(s, a, float(p), int(to), float(r), bool(end)) for s in range(states) for a in range(actions) for p, to, r, end in table[s][a] if p != 0]
    for s, a, p, to, r, _ in moves:
        if not (p > 0 and 0 <= to < states and math.isfinite(r)):
            raise ValueError(f"env: P[{s}][{a}] leads to state {to} with probability {p} and reward {r}; legal are states below {states} and finite rewards")
    ended = {to for _, _, _, to, _, end in moves if end}
    shared = {to for s, _, _, to, _, end in moves if not end and s not in ended} & ended
    terminal = ended - shared
    total = states + bool(shared)
    terminal |= {states} if shared else set()
    reward = torch.zeros(total, actions, dtype=torch.float64)
    entries = [(s * actions + a, s, 1.0) for s in terminal for a in range(actions)]
    for s, a, p, to, r, end in moves:
        if s not in terminal:
            reward[s, a] += p * r
            entries.append((s * actions + a, states if end and to in shared else to, p))
    rows, columns, weights = zip(*entries, strict=True)
    transitions = sparse.csr_array(sparse.coo_array((weights, (rows, columns)), shape=(total * actions, total)))
    start = torch.zeros(total, dtype=torch.float64)
    start[:states] = torch.as_tensor(np.asarray(initial, np.float64))
    return MDP(transitions, reward, torch.tensor([s in terminal for s in range(total)]), start)


def gridworld(size: int = 6, slip: float = 0.1) -> MDP:
    """A square of `size * size` cells without ends or reward: left, down, right, up; with probability `slip` one of the other three moves; walls hold.

    Starts are uniform. Cells count along rows. Raises ValueError unless `size >= 1` and `0 <= slip <= 1`.

    >>> mdp = gridworld(2, slip=0.3)
    >>> mdp.transitions[[2]].toarray().round(2).tolist()           # right, in the upper left corner
    [[0.2, 0.7, 0.1, 0.0]]
    """
    if size < 1 or not 0 <= slip <= 1:
        raise ValueError(f"size, slip: got {size}, {slip}, legal is size >= 1 and 0 <= slip <= 1")
    cell = np.arange(size * size)
    row, column = cell // size, cell % size
    steps = [(0, -1), (1, 0), (0, 1), (-1, 0)]
    ends = np.stack([np.clip(row + dy, 0, size - 1) * size + np.clip(column + dx, 0, size - 1) for dy, dx in steps], 1)  # [S, 4]
    chance = np.where(np.eye(4, dtype=bool), 1 - slip, slip / 3)
    rows = np.repeat(np.arange(4 * size * size), 4)
    columns = np.repeat(ends, 4, axis=0).reshape(-1)
    transitions = sparse.coo_array((np.tile(chance, (size * size, 1)).reshape(-1), (rows, columns)), shape=(4 * size * size, size * size))
    states = size * size
    return MDP(transitions, torch.zeros(states, 4), torch.zeros(states, dtype=torch.bool), torch.full((states,), 1 / states, dtype=torch.float64))
