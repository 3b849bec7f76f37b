"""Matches on a board: a player against a random one, a perfect one, or a plain Monte-Carlo tree search of open_spiel; and all lines at once.

A player is a function of states to actions, asked for many games at a time; results are 1, 0, -1 for the player (times the game's scale).
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from entreg.rl.games import Board, State

Player = Callable[[list[State]], np.ndarray]  # states -> actions, one each
_SOLVABLE = 9  # moves of a game that is solved in a blink


class Opponent(Protocol):
    """Answers one position of one game."""

    def step(self, state: State) -> int:
        """An action for the player to move."""


class Random:
    """Any legal move, all with the same probability."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def step(self, state: State) -> int:
        return int(self._generator.choice(state.legal_actions()))


class Solver:
    """Perfect play: any of the moves that keep the value of the position, all with the same probability.

    >>> board = Board("tic_tac_toe", {}, 1.0)
    >>> Solver(0).value(board.start(0.0)), Solver(0).best(board.unpack([0, 3, 1, 4]))
    (0.0, [2])
    """

    def __init__(self, seed: int, known: dict[str, float] | None = None) -> None:
        self._generator = np.random.default_rng(seed)
        self._known = {} if known is None else known

    def value(self, state: State) -> float:
        """The first player's result under perfect play from here."""
        name = str(state)
        if name not in self._known:
            if state.is_terminal():
                self._known[name] = state.returns()[0]
            else:
                pick = max if state.current_player() == 0 else min
                self._known[name] = pick(self.value(state.child(action)) for action in state.legal_actions())
        return self._known[name]

    def best(self, state: State) -> list[int]:
        """All moves that keep the value."""
        value = self.value(state)
        return [action for action in state.legal_actions() if self.value(state.child(action)) == value]

    def step(self, state: State) -> int:
        return int(self._generator.choice(self.best(state)))


def solvable(game: Board) -> bool:
    """Whether the game is small enough to be solved."""
    return bool(game.game.max_game_length() <= _SOLVABLE)


def plain_mcts(game: Board, simulations: int, seed: int) -> Any:
    """open_spiel's UCT with one random rollout a simulation and its usual constant 2."""
    pyspiel = importlib.import_module("pyspiel")
    return pyspiel.MCTSBot(game.game, pyspiel.RandomRolloutEvaluator(1, seed), 2.0, simulations, 16, False, seed, False)


def play(game: Board, player: Player, opponents: Sequence[Opponent], first: np.ndarray, stop: Callable[[], object] | None = None) -> np.ndarray | None:
    """One game against each of the opponents, `first [G]` says where the player begins; the results and lengths `[2, G]`, None where `stop()` ended it.

    The player is always asked for all G games (for ended ones with a first position), so that batches keep their shape.
    """
    states = [game.start(0.0) for _ in opponents]
    spare, side = game.start(0.0), np.where(first, 0, 1)
    while not all(state.is_terminal() for state in states):
        if stop is not None and stop():
            return None
        for state, opponent, own in zip(states, opponents, side, strict=True):
            while not state.is_terminal() and state.current_player() != own:
                state.apply_action(opponent.step(state))
        if all(state.is_terminal() for state in states):
            break
        actions = player([spare if state.is_terminal() else state for state in states])
        for state, action in zip(states, actions.tolist(), strict=True):
            if not state.is_terminal():
                state.apply_action(action)
    results = [state.returns()[own] for state, own in zip(states, side, strict=True)]
    return np.array([results, [state.move_number() for state in states]], float)


def losing_lines(game: Board, player: Player, first: bool) -> tuple[list[str], int]:
    """Every game that some opponent could play against the player: the distinct lost end positions, and how many positions the player was asked for.

    An empty list proves that the player, as it is now, never loses from this side. For small games.
    """
    own = 0 if first else 1
    lost: dict[str, None] = {}
    asked = 0
    waiting = {str(state): state for state in _replies([game.start(0.0)], own, lost)}
    while waiting:
        asked += len(waiting)
        actions = player(list(waiting.values())).tolist()
        after = [state.child(action) for state, action in zip(waiting.values(), actions, strict=True)]
        waiting = {str(state): state for state in _replies(after, own, lost)}
    return list(lost), asked


def _replies(states: Sequence[State], own: int, lost: dict[str, None]) -> list[State]:
    """The positions in which the player is to move, after every move of the other; ended games are looked at and dropped."""
    result = []
    for state in states:
        if state.is_terminal():
            if state.returns()[own] < 0:
                lost[str(state)] = None
        elif state.current_player() == own:
            result.append(state)
        else:
            result += _replies([state.child(action) for action in state.legal_actions()], own, lost)
    return result
