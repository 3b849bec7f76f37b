"""The trees of many games, grown in lockstep: one new node a game and simulation.

Shapes: G games, N nodes a tree, A actions, K outcomes of chance, R chosen games. Node 0 is the root, node i what simulation i met first.
Values are float64 and those of the player to move. An edge is one outcome of one action; `factor` is gamma, negative where the other player moves next.
"""

from collections.abc import Callable, Sequence

import numpy as np

from entreg.rl import search_rules as rules
from entreg.rl.games import Game, State
from entreg.rl.search_rules import Kind

Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # observations [G, D] -> logits [G, A], values [G]


class Trees:
    """Everything a search keeps. Rows of unused nodes are zeros; children that do not exist are -1."""

    def __init__(self, game: Game, roots: Sequence[State], simulations: int, kind: Kind, *, gamma: float, tau: float) -> None:
        g, n, a, k = len(roots), simulations + 1, game.actions, game.outcomes
        self.game, self.kind, self.gamma, self.tau = game, kind, gamma, tau
        self.child = np.full((g, n, a, k), -1, np.int32)
        self.count = np.zeros((g, n, a, k), np.int32)
        self.reward, self.factor = np.zeros((g, n, a, k)), np.zeros((g, n, a, k))
        self.visits = np.zeros((g, n, a), np.int32)
        self.q, self.prior = np.zeros((g, n, a)), np.zeros((g, n, a))
        self.value, self.first = np.zeros((g, n)), np.zeros((g, n))
        self.legal, self.terminal = np.zeros((g, n, a), bool), np.zeros((g, n), bool)
        self.chance = np.zeros((g, n, a, k)) if k > 1 else None
        self.states: list[list[State]] = [[root] + [None] * simulations for root in roots]
        self.observation, self._legal = np.zeros((g, game.size), np.float32), np.ones((g, a), bool)
        low, high = game.bounds or (np.inf, -np.inf)
        self.low, self.high = np.full(g, low), np.full(g, high)
        self.games = np.arange(g)
        for row, root in enumerate(roots):
            self._look(row, root)

    def _look(self, row: int, state: State) -> None:
        self.game.look(state, self.observation[row], self._legal[row])

    def expand(self, rows: np.ndarray, edge: Sequence[np.ndarray], node: int) -> np.ndarray:
        """Make `node` of the games `rows` by following an edge (parent, action, outcome, each `[R]`); which of these states are not terminal."""
        game, gamma = self.game, self.gamma
        alive = np.ones(len(rows), bool)
        for index, (row, before, taken, met) in enumerate(zip(rows.tolist(), *(part.tolist() for part in edge), strict=True)):
            move = game.advance(self.states[row][before], taken, met)
            at = row, before, taken, met
            self.child[at], self.reward[at] = node, move.reward
            self.factor[at] = gamma if move.same else -gamma
            if move.terminal:
                self.terminal[row, node], alive[index] = True, False
            else:
                self.states[row][node] = move.state
                game.look(move.state, self.observation[row], self._legal[row])
        return alive

    def fill(self, rows: np.ndarray, node: int, logits: np.ndarray, value: np.ndarray) -> None:
        """Write what the network says of `node` of the games `rows`: logits `[R, A]`, values `[R]`; values are kept within known bounds."""
        legal = self._legal[rows]
        prior = rules.softmax(logits.astype(np.float64), legal)
        value = value.astype(np.float64)
        if self.game.bounds is not None:
            value = np.clip(value, *self.game.bounds)
        self.legal[rows, node], self.prior[rows, node] = legal, prior
        self.value[rows, node] = self.first[rows, node] = value
        self.q[rows, node] = rules.start_values(self.kind, value, prior, self.tau)
        if self.chance is not None:
            for row in rows.tolist():
                self.chance[row, node] = self.game.chance(self.states[row][node])
        self._widen(rows, value)

    def _widen(self, rows: np.ndarray, value: np.ndarray) -> None:
        if self.game.bounds is None:
            self.low[rows] = np.minimum(self.low[rows], value)
            self.high[rows] = np.maximum(self.high[rows], value)

    def scaled(self, rows: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Action values `[R, A]` on [0, 1]: by the game's bounds, or by the least and the largest value met in the tree (MuZero, appendix B)."""
        low, high = self.low[rows, None], self.high[rows, None]
        span = high - low
        scaled: np.ndarray = np.clip((q - low) / np.where(span > 0, span, 1.0), 0.0, 1.0)
        return scaled

    def back_up(self, rows: np.ndarray, node: np.ndarray, action: np.ndarray, outcome: np.ndarray) -> None:
        """One step of the way back: count an edge of each of the games `rows`, and make its action's and its node's value anew.

        Q(s, a) is the mean of reward + factor V(child) over the outcomes met, each as often as it was met.
        """
        at = rows, node, action
        self.count[rows, node, action, outcome] += 1
        self.visits[at] += 1
        child = self.child[at]
        following = self.value[rows[:, None], child]  # a child that does not exist has count 0
        q = (self.count[at] * (self.reward[at] + self.factor[at] * following)).sum(-1) / self.visits[at]
        self.q[at] = q
        here = rows, node
        value = rules.backed_up(self.kind, self.q[here], self.visits[here], self.prior[here], self.legal[here], self.first[here], self.tau)
        self.value[here] = value
        self._widen(rows, q)
