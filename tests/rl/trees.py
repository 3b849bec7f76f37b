"""Small games whose values are known by enumeration."""

import numpy as np

from entreg.rl import search_rules as rules
from entreg.rl.games import Move


class Tree:
    """A complete tree of `depth` moves with random rewards; states are tuples of (action, outcome) pairs. Some actions are illegal."""

    name, limit, notes = "tree", None, ()

    def __init__(self, players, *, depth=3, actions=3, chances=((1.0,),), seed=0):
        self.players, self.depth, self.actions = players, depth, actions
        self.outcomes = len(chances[0])
        self.cumulative = np.cumsum([chances[action % len(chances)] for action in range(actions)], axis=-1)
        self.cumulative[:, -1] = 1.0
        self.probability = np.diff(self.cumulative, prepend=0.0, axis=-1)
        self.bounds = (-1.0, 1.0) if players == 2 else None
        self.size = 1
        self.seed = seed

    def _random(self, state):
        return np.random.default_rng([self.seed, *(number for pair in state for number in pair)])

    def start(self, uniform):
        return ()

    def chance(self, state):
        return None if self.outcomes == 1 else self.cumulative

    def legal(self, state):
        legal = np.ones(self.actions, bool)
        if len(state) == 1:
            legal[self._random(state).integers(self.actions)] = False
        return legal

    def advance(self, state, action, outcome):
        assert self.legal(state)[action]
        after = (*state, (action, outcome + 10))
        terminal = len(after) == self.depth
        reward = self._random(after).uniform(-1, 1) if terminal or self.players == 1 else 0.0
        return Move(after, reward, terminal, self.players == 1)

    def look(self, state, observation, legal):
        observation[:] = hash(state) % 1000 / 1000
        legal[:] = self.legal(state)

    def mover(self, state):
        return len(state) % self.players

    def pack(self, state):
        return [number for pair in state for number in pair]

    def unpack(self, numbers):
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def exact(tree, kind, gamma, tau, state=()):
    """Value and action values under the exact (soft) recursion with a uniform prior; hard maximum for puct and gumbel."""
    q = np.full(tree.actions, -np.inf)
    for action in np.flatnonzero(tree.legal(state)):
        q[action] = 0.0
        for outcome, probability in enumerate(tree.probability[action]):
            move = tree.advance(state, action, outcome)
            following = 0.0 if move.terminal else exact(tree, kind, gamma, tau, move.state)[0]
            q[action] += probability * (move.reward + gamma * (following if move.same else -following))
    legal = q > -np.inf
    best = q[legal]
    if kind in rules.SOFT:
        return soft(kind, best, np.full(len(best), 1 / len(best)), tau)[0], q
    return best.max(), q


def soft(kind, q, prior, tau):
    """max over the simplex of p.q + tau Omega(p) by plain means: formulas for the logarithmic ones, all supports for sparsemax."""
    if kind != "tents":
        weights = np.exp(q / tau) * (prior if kind == "rents" else 1.0)
        return tau * np.log(weights.sum()), weights / weights.sum()
    best = (-np.inf, None)
    for code in range(1, 2 ** len(q)):
        chosen = np.array([code >> i & 1 for i in range(len(q))], bool)
        p = np.where(chosen, (q - q[chosen].mean()) / (2 * tau) + 1 / chosen.sum(), 0.0)
        if (p >= 0).all():
            best = max(best, (p @ q + tau * (1 - p @ p), p), key=lambda pair: pair[0])
    return best
