"""Matches on a board: a player against a random one, a perfect one, or a plain Monte-Carlo tree search of open_spiel; and all lines at once.

A player is a function of states to actions, asked for many games at a time; results are the player's, as the game counts them (1, 0, -1).
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from entreg.rl.games import Board, State

Player = Callable[[list[State]], np.ndarray]  # states -> actions, one each
_SOLVABLE = 9  # moves of a game that is solved in a blink


class Opponent(Protocol):
    """Answers one position of one game."""

    def step(self, state: State) -> int:
        """An action for the player to move."""


class Played(NamedTuple):
    """Games that have ended: results and lengths `[G]`, and their last states."""

    result: np.ndarray
    length: np.ndarray
    final: list[State]


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


def play(game: Board, player: Player, opponents: Sequence[Opponent], first: np.ndarray, stop: Callable[[], object] | None = None) -> Played | None:
    """One game against each of the opponents, `first [G]` says where the player begins; None where `stop()` ended it.

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
    return Played(np.array(results), np.array([state.move_number() for state in states]), states)


def told(game: Board, player: Player, count: int, seed: int) -> Iterator[str]:
    """Lines about `count` games against a random player, the player beginning every second one, and the last board."""
    played = play(game, player, [Random(seed + index) for index in range(count)], np.arange(count) % 2 == 0)
    assert played is not None
    words = {1: "won", 0: "drawn", -1: "lost"}
    for index, (result, length) in enumerate(zip(np.sign(played.result).tolist(), played.length.tolist(), strict=True)):
        yield f"game {index + 1}, moving {'second' if index % 2 else 'first'}: {words[result]} in {length} moves"
    yield str(played.final[-1]).rstrip()
    shares = [f"{words[sign]} {int((np.sign(played.result) == sign).sum())}" for sign in (1, 0, -1)]
    yield f"{', '.join(shares)} of {count} against a random player, by the network alone, without search"


def losing_lines(game: Board, player: Player, first: bool, replies: Callable[[State], Sequence[int]] | None = None) -> tuple[list[str], int]:
    """Every game that an opponent could play against the player: the distinct lost end positions, and how many positions the player was asked for.

    `replies` are the opponent's moves in a position: by default all legal ones; `Solver(0).best` those of perfect play. An empty list proves that the
    player, as it is now, never loses to such an opponent from this side. For small games.
    """
    own = 0 if first else 1
    replies = replies or (lambda state: state.legal_actions())
    lost: dict[str, None] = {}
    asked = 0
    waiting = _replied([game.start(0.0)], own, replies, lost)
    while waiting:
        asked += len(waiting)
        actions = player(list(waiting.values())).tolist()
        waiting = _replied([state.child(action) for state, action in zip(waiting.values(), actions, strict=True)], own, replies, lost)
    return list(lost), asked


def _replied(states: Sequence[State], own: int, replies: Callable[[State], Sequence[int]], lost: dict[str, None]) -> dict[str, State]:
    """The positions in which the player is to move, by name, after every reply of the other; ended games are looked at and dropped."""
    result: dict[str, State] = {}
    for state in states:
        if state.is_terminal():
            if state.returns()[own] < 0:
                lost[str(state)] = None
        elif state.current_player() == own:
            result[str(state)] = state
        else:
            result |= _replied([state.child(action) for action in replies(state)], own, replies, lost)
    return result
