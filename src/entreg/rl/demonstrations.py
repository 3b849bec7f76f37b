"""Demonstrations in a tabular process: read from a file and checked row by row, or sampled from a policy.

Shapes: K trajectories, N steps of all of them together, S states, A actions.

    .jsonl   one trajectory a line: {"state": [0, 4, 8], "action": [1, 1]}; `state` may have one more entry, the state in which it ended
    .npz     integer arrays `state [N]`, `action [N]` and `trajectory [N]`, the rows of one trajectory together and in order; action -1 in a trajectory's
             last row: that is the state in which it ended

The last state says whether an episode ended or was cut. Without it the model's expectation over what follows the last action stands in.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from entreg.planning import MDP

Integers = NDArray[np.int64]
UNKNOWN = -1  # the state after a trajectory that does not say
SUFFIXES = (".npz", ".jsonl")


class Demonstrations(NamedTuple):
    """Steps `state [N]` and `action [N]`, where each trajectory begins (`start [K]`), and the state after its last action (`end [K]`, -1: not known)."""

    state: Integers
    action: Integers
    start: Integers
    end: Integers

    @property
    def lengths(self) -> Integers:
        """Steps of each trajectory, `[K]`."""
        return np.diff(np.append(self.start, len(self.state)))

    @property
    def time(self) -> Integers:
        """The step of its trajectory that each row is, `[N]`."""
        return np.arange(len(self.state)) - np.repeat(self.start, self.lengths)


def read(path: Path, mdp: MDP) -> Demonstrations:
    """The trajectories of a file.

    Raises: `ValueError` naming file and row (of the arrays from 0, of a text from 1) for anything that is no trajectory of this process: wrong types, states
    and actions that do not exist, actions in terminal states, steps that the transitions do not allow; and for a file that cannot be read.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"trajectories is {str(path)!r}; legal are files that end in {' or '.join(SUFFIXES)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"trajectories: {path} cannot be read ({error.strerror})") from None
    rows = _lines(path, data) if path.suffix == ".jsonl" else _arrays(path, data)
    if not rows:
        raise ValueError(f"trajectories: {path} holds no trajectory; legal is at least one")
    for name, states, actions in rows:
        _check(f"trajectories: {path} {name}", states, actions, mdp)
    return joined([(states, actions) for _, states, actions in rows])


def joined(trajectories: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Demonstrations:
    """States and actions of each trajectory, with or without the state after the last action, as one."""
    lengths = np.array([len(actions) for _, actions in trajectories])
    return Demonstrations(
        state=np.array([s for states, actions in trajectories for s in states[: len(actions)]], np.int64),
        action=np.array([a for _, actions in trajectories for a in actions], np.int64),
        start=np.cumsum(lengths) - lengths,
        end=np.array([states[-1] if len(states) > len(actions) else UNKNOWN for states, actions in trajectories], np.int64),
    )


Row = tuple[str, list[int], list[int]]  # its name in a message, states, actions


def _lines(path: Path, data: bytes) -> list[Row]:
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"trajectories: {path} row {number}"
        try:
            page = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is no JSON object ({str(error)[:80]})") from None
        if not isinstance(page, dict) or page.keys() != {"state", "action"}:
            raise ValueError(f'{where} is {line[:60].decode(errors="replace")!r}; legal is {{"state": [...], "action": [...]}}')
        for name, values in page.items():
            wrong = [value for value in values if type(value) is not int] if isinstance(values, list) else [values]
            if wrong:
                raise ValueError(f"{where}: {name} holds {wrong[0]!r:.60}; legal is a list of integers")
        states, actions = page["state"], page["action"]
        if not actions or len(states) - len(actions) not in (0, 1):
            raise ValueError(f"{where} has {len(states)} states and {len(actions)} actions; legal is as many, or one state more, and at least one action")
        rows.append((f"row {number}", states, actions))
    return rows


def _arrays(path: Path, data: bytes) -> list[Row]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:  # from memory: np.load leaves a file open that it cannot read
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # of zip, zlib and NumPy, whatever stands in the file
        raise ValueError(f"trajectories: {path} is no readable .npz ({type(error).__name__}: {str(error)[:80]})") from None
    wanted = {"state", "action", "trajectory"}
    if arrays.keys() != wanted:
        raise ValueError(f"trajectories: {path} holds {', '.join(sorted(arrays)) or 'nothing'}; legal are the arrays {', '.join(sorted(wanted))}")
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"trajectories: {path}: {name} is an array {array.shape} of {array.dtype}; legal is one row of integers")
    if len({len(array) for array in arrays.values()}) > 1:
        sizes = ", ".join(f"{len(array)} of {name}" for name, array in sorted(arrays.items()))
        raise ValueError(f"trajectories: {path} has rows of unequal number ({sizes}); legal is as many of each")
    state, action, trajectory = (arrays[name] for name in ("state", "action", "trajectory"))
    if not len(state):
        return []
    begins = np.flatnonzero(np.append(True, trajectory[1:] != trajectory[:-1]))
    seen = {int(trajectory[row]): int(row) for row in reversed(begins)}
    if len(seen) < len(begins):
        row = next(int(row) for row in begins if seen[int(trajectory[row])] != row)
        raise ValueError(f"trajectories: {path} row {row} goes on with trajectory {trajectory[row]} after another; legal is each in one piece")
    rows = []
    for first, last in zip(begins.tolist(), [*begins[1:].tolist(), len(state)], strict=True):
        states, actions = state[first:last].tolist(), action[first:last].tolist()
        ended = actions[-1] == UNKNOWN
        if ended and len(actions) == 1:
            raise ValueError(f"trajectories: {path} row {first} is a trajectory without an action; legal is at least one")
        rows.append((f"row {first} + ", states, actions[:-1] if ended else actions))
    return rows


def _check(where: str, states: list[int], actions: list[int], mdp: MDP) -> None:
    """ValueError that names the step for what this process does not know."""

    def place(step: int) -> str:
        return f"{where[:-3]}{_plus(where, step)}" if where.endswith(" + ") else f"{where}, step {step}"

    for name, values, count in (("state", states, mdp.states), ("action", actions, mdp.actions)):
        for step, value in enumerate(values):
            if not 0 <= value < count:
                raise ValueError(f"{place(step)}: {name} is {value}; legal are 0 to {count - 1}")
    terminal = mdp.terminal.numpy()
    for step, (state, action) in enumerate(zip(states, actions, strict=False)):
        if terminal[state]:
            raise ValueError(f"{place(step)}: an action in state {state}, which is terminal; legal is none")
        if step + 1 < len(states) and mdp.transitions[state * mdp.actions + action, states[step + 1]] <= 0:
            raise ValueError(f"{place(step)}: action {action} cannot lead from state {state} to {states[step + 1]} in this environment")


def _plus(where: str, step: int) -> str:
    return "" if step == 0 else f" + {step}"


def sample(mdp: MDP, policy: Tensor, count: int, horizon: int, rng: np.random.Generator) -> Demonstrations:
    """`count` trajectories of `policy [S, A]` (or `[T, S, A]`, T = horizon) from the initial distribution: until they end, at most `horizon` steps."""
    steps = policy if policy.ndim == 3 else policy.expand(horizon, *policy.shape)
    cumulated = np.cumsum(mdp.transitions.data)
    before = np.append(0.0, cumulated)[mdp.transitions.indptr]
    state = _drawn(mdp.initial.numpy()[None].repeat(count, 0), rng)
    terminal = mdp.terminal.numpy()
    states, actions, live = [state], [], [~terminal[state]]
    for t in range(horizon):
        action = _drawn(steps[t].numpy()[state], rng)
        row = state * mdp.actions + action
        point = before[row] + rng.random(count) * (before[row + 1] - before[row])
        place = np.searchsorted(cumulated, point, side="right").clip(mdp.transitions.indptr[row], mdp.transitions.indptr[row + 1] - 1)
        state = np.where(terminal[state], state, mdp.transitions.indices[place])
        states.append(state)
        actions.append(action)
        live.append(~terminal[state])
    lengths = np.sum(live[:-1], axis=0)
    tracks, moves = np.stack(states, 1), np.stack(actions, 1)
    return joined([(tracks[k, : n + 1].tolist(), moves[k, :n].tolist()) for k, n in enumerate(lengths.tolist()) if n])


def _drawn(probabilities: NDArray[np.float64], rng: np.random.Generator) -> Integers:
    """One class a row, `[N, V] -> [N]`."""
    cumulated = probabilities.cumsum(1)
    drawn: Integers = (rng.random((len(cumulated), 1)) * cumulated[:, -1:] >= cumulated).sum(1).clip(max=cumulated.shape[1] - 1)
    return drawn


def counts(shown: Demonstrations, mdp: MDP, gamma: float, horizon: int | None = None) -> Tensor:
    """Mean discounted visits a trajectory, `sum_t gamma^t [s_t = s, a_t = a]`: `[S, A]`, with a horizon `[T, S, A]`."""
    steps = 1 if horizon is None else horizon
    found = np.zeros((steps, mdp.states, mdp.actions))
    time = shown.time
    np.add.at(found, (np.zeros_like(time) if horizon is None else time, shown.state, shown.action), gamma**time / len(shown.start))
    result = torch.from_numpy(found)
    return result[0] if horizon is None else result


def entries(shown: Demonstrations, mdp: MDP, gamma: float, horizon: int | None = None, *, every: bool = False) -> Tensor:
    """Where the model has to start to be compared with the demonstrations: signed weights of states, `[S]`, with a horizon `[T, S]`.

    `[s_0] - gamma^L [s_L]`, mean over trajectories of L steps: what the model does after a trajectory was cut is taken away again. With `every` each step is
    compared on its own: `sum_t gamma^t [s_t] - gamma^(t+1) p(. | s_t, a_t)`, the same in expectation and without the luck of the transitions.
    """
    steps = 1 if horizon is None else horizon + 1
    found = np.zeros((steps, mdp.states))
    share, time, lengths = 1 / len(shown.start), shown.time, shown.lengths
    last = shown.start + lengths - 1
    from_state = np.arange(len(time)) if every else shown.start
    to_model = np.arange(len(time)) if every else last[shown.end == UNKNOWN]
    known = np.array([], np.int64) if every else np.flatnonzero(shown.end != UNKNOWN)

    def at(step: Integers) -> Integers:
        return np.zeros_like(step) if horizon is None else step

    np.add.at(found, (at(time[from_state]), shown.state[from_state]), share * gamma ** time[from_state])
    np.add.at(found, (at(lengths[known]), shown.end[known]), -share * gamma ** lengths[known])
    rows = mdp.transitions[shown.state[to_model] * mdp.actions + shown.action[to_model]].tocoo()
    after = time[to_model][rows.coords[0]] + 1
    np.add.at(found, (at(after), rows.coords[1]), -share * gamma**after * rows.data)
    result = torch.from_numpy(np.where(mdp.terminal.numpy(), 0, found))
    return result[0] if horizon is None else result[:-1]


def facts(shown: Demonstrations) -> dict[str, Any]:
    """What is worth a line: how many trajectories and steps."""
    return {"trajectories": len(shown.start), "steps": len(shown.state)}
