"""Games that a search can think ahead in: boards of open_spiel, and toy-text tasks of Gymnasium, whose transition model `env.P` is known.

Shapes: A actions, K outcomes that one action can have (1 where nothing is left to chance), S states, D observation size.
A state is whatever its game says: a `pyspiel.State`, or the number of a toy-text state. States are never changed, only followed.
"""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from entreg import planning
from entreg.rl import naming
from entreg.rl.spaces import ActionSpec

State = Any
LONGEST = 200  # moves, where a task has no limit of its own
# planes of the two players' stones: they change places when the second moves, so that the network sees its own side first
_PLANES = {"tic_tac_toe": (2, 1), "connect_four": (0, 1)}


class Move(NamedTuple):
    """What an action led to: `reward` is the mover's; `same` says whether the mover is also the next to move."""

    state: State
    reward: float
    terminal: bool
    same: bool


class Described(NamedTuple):
    """What a study asks of environments before it begins, for a game that stands in their place."""

    action_spec: ActionSpec
    notes: tuple[str, ...]

    def close(self) -> None:
        """Nothing is open."""


class Game(Protocol):
    """What a search and self-play ask. `limit` moves end an episode without a result (None: the game ends by itself)."""

    name: str
    players: int
    actions: int
    outcomes: int
    size: int  # D
    bounds: tuple[float, float] | None  # of a value, where they are known
    limit: int | None
    notes: tuple[str, ...]

    def start(self, uniform: float) -> State:
        """A first state; `uniform` in [0, 1) chooses where there are several."""

    def chance(self, state: State) -> np.ndarray | None:
        """Cumulative probabilities of the outcomes, `[A, K]` (the last column is 1); None where K is 1."""

    def advance(self, state: State, action: int, outcome: int) -> Move:
        """What `action` leads to when chance decides for `outcome`."""

    def look(self, state: State, observation: np.ndarray, legal: np.ndarray) -> None:
        """Write the mover's view `[D]` and the legal actions `[A]` into the given rows."""

    def mover(self, state: State) -> int:
        """The player to move, 0 or 1."""

    def pack(self, state: State) -> list[int]:
        """The state as whole numbers."""

    def unpack(self, numbers: Sequence[int]) -> State:
        """The state that `pack` wrote down."""


def is_board(env: str) -> bool:
    """Whether this names a game of open_spiel (and not a Gymnasium id)."""
    if ":" in env or "/" in env or "-v" in env:
        return False
    return env in _boards()


def _boards() -> Sequence[str]:
    """The names of open_spiel's games; without it those that need it first."""
    try:
        names: Sequence[str] = importlib.import_module("pyspiel").registered_names()
    except ImportError:
        return tuple(_PLANES)
    return names


def make(env: str, env_kwargs: Mapping[str, Any] | None = None, *, reward_scale: float = 1.0) -> Game:
    """The game of this name: one of open_spiel (`tic_tac_toe`, `connect_four`, ...) or a toy-text id of Gymnasium; rewards come multiplied by `reward_scale`.

    Raises:
        ValueError: an unknown name, an argument the game does not take, or a game that this search cannot play, with the reason.
        ImportError: open_spiel is not installed.

    >>> lake = make("FrozenLake-v1")
    >>> lake.actions, lake.outcomes, lake.chance(0)[1].round(3).tolist()
    (4, 3, [0.333, 0.667, 1.0])
    """
    if is_board(env):
        return Board(env, dict(env_kwargs or {}), reward_scale)
    try:
        naming.find(env)
    except ValueError as error:
        near = difflib.get_close_matches(env.lower(), _boards(), n=3)
        raise ValueError(f"{error}; boards of open_spiel: {', '.join(near or _PLANES)}") from error
    return ToyText(env, dict(env_kwargs or {}), reward_scale)


class Board:
    """A game of open_spiel: two players, zero sum, perfect information, no chance, the result at the end.

    Cloning a state and applying an action takes .5 us (tic-tac-toe) or .6 us (Connect Four), which is what makes a search from Python worth while.

    >>> game = Board("tic_tac_toe", {})
    >>> state = game.advance(game.start(0.0), 4, 0).state
    >>> view, legal = np.empty(27, np.float32), np.empty(9, bool)
    >>> game.look(state, view, legal)
    >>> view.reshape(3, 9)[1].sum(), view.reshape(3, 9)[2].sum(), legal.sum()  # the second player's own stones, then the other's
    (np.float32(0.0), np.float32(1.0), np.int64(8))
    """

    players, outcomes = 2, 1
    limit: int | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, name: str, kwargs: Mapping[str, Any], reward_scale: float = 1.0) -> None:
        try:
            pyspiel = importlib.import_module("pyspiel")
        except ImportError as error:
            raise ImportError(f'env {name!r} needs open_spiel, which is not installed: pip install "entreg[rl]"') from error
        self.name = name
        legal = next(kind.parameter_specification for kind in pyspiel.registered_games() if kind.short_name == name)
        if unknown := sorted(set(kwargs) - set(legal)):
            raise ValueError(f"env_kwargs: {name} takes no argument {unknown[0]!r}; legal are {', '.join(sorted(legal)) or 'none'}")
        self.game = pyspiel.load_game(name, dict(kwargs))
        _check_board(pyspiel, self.game, name)
        self.actions = int(self.game.num_distinct_actions())
        self.size = int(self.game.observation_tensor_size())
        self.scale = reward_scale
        self.bounds: tuple[float, float] | None = (self.game.min_utility() * reward_scale, self.game.max_utility() * reward_scale)
        shape = self.game.observation_tensor_shape()
        self._order = np.arange(self.size)
        if name in _PLANES:
            planes = self._order.reshape(shape[0], -1)
            first, second = _PLANES[name]
            (other,) = set(range(3)) - {first, second}
            self._views = [planes[[other, first, second]].ravel(), planes[[other, second, first]].ravel()]
        else:
            self._views = [self._order, self._order]

    def start(self, uniform: float) -> State:
        return self.game.new_initial_state()

    def chance(self, state: State) -> None:
        return None

    def advance(self, state: State, action: int, outcome: int) -> Move:
        mover, after = state.current_player(), state.child(action)
        if after.is_terminal():
            return Move(after, after.returns()[mover] * self.scale, True, False)
        return Move(after, 0.0, False, after.current_player() == mover)

    def look(self, state: State, observation: np.ndarray, legal: np.ndarray) -> None:
        mover = state.current_player()
        observation[:] = np.array(state.observation_tensor(mover), np.float32)[self._views[mover]]
        legal[:] = state.legal_actions_mask()

    def mover(self, state: State) -> int:
        return int(state.current_player())

    def pack(self, state: State) -> list[int]:
        return list(state.history())

    def unpack(self, numbers: Sequence[int]) -> State:
        state = self.game.new_initial_state()
        for action in numbers:
            state.apply_action(int(action))
        return state


def _check_board(pyspiel: Any, game: Any, name: str) -> None:
    kind = game.get_type()
    needs = {
        "two players": game.num_players() == 2,
        "zero sum": kind.utility == pyspiel.GameType.Utility.ZERO_SUM,
        "perfect information": kind.information == pyspiel.GameType.Information.PERFECT_INFORMATION,
        "turns": kind.dynamics == pyspiel.GameType.Dynamics.SEQUENTIAL,
        "no chance": kind.chance_mode == pyspiel.GameType.ChanceMode.DETERMINISTIC,
        "the result at the end": kind.reward_model == pyspiel.GameType.RewardModel.TERMINAL,
        "an observation tensor": kind.provides_observation_tensor,
    }
    if lacking := [need for need, there in needs.items() if not there]:
        raise ValueError(f"env {name!r} cannot be searched: this needs a game with {', '.join(lacking)}")


class ToyText:
    """A toy-text task of Gymnasium as a game of one player against chance, cloned as one number because its model is known.

    Transitions are drawn from `env.P`, so nothing of Gymnasium's is called after the tables are made. Action masks of some tasks' infos are not read:
    the masked actions leave the state as it is.
    """

    players = 1
    bounds: tuple[float, float] | None = None

    def __init__(self, name: str, kwargs: Mapping[str, Any], reward_scale: float = 1.0) -> None:
        spec, remarks = naming.find(name)
        env, notes = naming.build(spec, kwargs)
        model, starts = getattr(env.unwrapped, "P", None), getattr(env.unwrapped, "initial_state_distrib", None)
        limit = None if env.spec is None else env.spec.max_episode_steps
        self.limit: int | None = limit or LONGEST
        env.close()
        if not isinstance(model, Mapping) or starts is None:
            raise ValueError(f"env {name!r} cannot be searched: legal are games of open_spiel and tasks with a transition model (env.P), such as FrozenLake-v1")
        planning.from_gymnasium(env)  # refuses tables that are no process
        uncut = () if limit else (f"{name} has no time limit: games are cut after {LONGEST} moves; env_kwargs max_episode_steps changes that",)
        self.name, self.notes = name, (*remarks, *notes, *uncut)
        self.size, self.actions = len(model), len(model[0])
        self.outcomes = max(len(rows) for actions in model.values() for rows in actions.values())
        shape = (self.size, self.actions, self.outcomes)
        probability, self._next = np.zeros(shape), np.zeros(shape, np.int64)
        self._reward, self._terminal = np.zeros(shape), np.zeros(shape, bool)
        for state, actions in model.items():
            for action, rows in actions.items():
                for outcome, (chance, after, reward, terminal) in enumerate(rows):
                    at = state, action, outcome
                    probability[at], self._next[at], self._reward[at], self._terminal[at] = chance, after, reward * reward_scale, terminal
        self._cumulative = _cumulative(probability)
        self._starts = _cumulative(np.asarray(starts, float))

    def start(self, uniform: float) -> State:
        return int((self._starts <= uniform).sum())

    def chance(self, state: State) -> np.ndarray | None:
        rows: np.ndarray | None = None if self.outcomes == 1 else self._cumulative[state]
        return rows

    def advance(self, state: State, action: int, outcome: int) -> Move:
        at = state, action, outcome
        return Move(int(self._next[at]), float(self._reward[at]), bool(self._terminal[at]), True)

    def look(self, state: State, observation: np.ndarray, legal: np.ndarray) -> None:
        observation[:] = 0.0
        observation[state] = 1.0
        legal[:] = True

    def mover(self, state: State) -> int:
        return 0

    def pack(self, state: State) -> list[int]:
        return [int(state)]

    def unpack(self, numbers: Sequence[int]) -> State:
        return int(numbers[0])


def _cumulative(probability: np.ndarray) -> np.ndarray:
    """Cumulative probabilities along the last axis, exactly 1 from the last possible outcome on."""
    possible = (probability > 0).astype(np.int64)
    later = possible[..., ::-1].cumsum(-1)[..., ::-1] - possible
    result: np.ndarray = np.where(later == 0, 1.0, probability.cumsum(-1))
    return result


def drawn(cumulative: np.ndarray | None, action: int, uniform: float) -> int:
    """The outcome of `action` that `uniform` in [0, 1) chooses.

    >>> drawn(np.array([[0.2, 1.0]]), 0, 0.1), drawn(np.array([[0.2, 1.0]]), 0, 0.2), drawn(None, 0, 0.9)
    (0, 1, 0)
    """
    return 0 if cumulative is None else int((cumulative[action] <= uniform).sum())
