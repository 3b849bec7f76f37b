"""Monte-Carlo tree search with a network for many games at once: PUCT, MENTS, RENTS, TENTS and Gumbel improvement are options of one search.

Shapes: G games, A actions, D observation size, S simulations. Every simulation walks down each game's tree, adds one node, asks the network once for all
games, and walks back. What is random in a game's search is a function of its 64-bit key alone: G games together are G games one by one.

Chance stands in the tree as explicit outcomes (`env.P`): the n-th visit of an action takes the outcome in which u + n phi (mod 1) falls, with a u
for every node and action and phi the golden ratio. Each visit by itself is then distributed as the model says, and n of them miss its
probabilities by O(log n / n) instead of O(1 / sqrt(n)).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from entreg.rl import search_rules as rules
from entreg.rl.games import Game, State
from entreg.rl.search_rules import KINDS, SOFT, Kind
from entreg.rl.search_trees import Evaluate, Trees

_GOLDEN = (math.sqrt(5) - 1) / 2
_ACTION, _CHANCE, _NOISE, _GUMBEL = range(4)  # purposes of random numbers


@dataclass(frozen=True)
class Options:
    """How to search; values, rewards and the temperature are in the same unit."""

    kind: Kind = "puct"
    simulations: int = 50
    gamma: float = 1.0
    temperature: float = 0.1
    epsilon: float = 0.1
    c_puct: float = 1.25
    dirichlet_alpha: float = 1.0
    dirichlet_fraction: float = 0.25
    considered: int = 16

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"search must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name, least in (("simulations", 1), ("considered", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, value in (("search_temperature", self.temperature), ("dirichlet_alpha", self.dirichlet_alpha)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("gamma", "dirichlet_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("epsilon", "c_puct"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")


class Result(NamedTuple):
    """What a search found at the roots: the improved policy `[G, A]`, the action it would play `[G]`, values `[G]`, action values and visits `[G, A]`."""

    policy: np.ndarray
    action: np.ndarray
    value: np.ndarray
    q: np.ndarray
    visits: np.ndarray


def search(game: Game, roots: Sequence[State], evaluate: Evaluate, keys: np.ndarray, options: Options, *, explore: bool = True) -> Result:
    """Search from every root, one for each of the `keys [G]` (uint64); `evaluate` gives logits `[G, A]` and values `[G]` for observations `[G, D]`.

    With `explore` the roots get Dirichlet noise (puct) or Gumbel noise (gumbel), as self-play needs; without it the result is the best known move.

    >>> from entreg.rl import games
    >>> game = games.make("tic_tac_toe")
    >>> state = game.unpack([0, 3, 1, 4])  # x o x: the first player wins at 2
    >>> blind = lambda observation: (np.zeros((len(observation), 9)), np.zeros(len(observation)))
    >>> int(search(game, [state], blind, np.zeros(1, np.uint64), Options(simulations=60), explore=False).action[0])
    2
    """
    trees = Trees(game, roots, options.simulations, options.kind, gamma=options.gamma, tau=options.temperature)
    logits, value = evaluate(trees.observation)
    trees.fill(trees.games, 0, logits, value)
    walk = _Walk(trees, keys, options, explore)
    for simulation in range(options.simulations):
        walk.simulate(simulation, evaluate)
    return walk.result()


class _Walk:
    """The simulations of one search."""

    def __init__(self, trees: Trees, keys: np.ndarray, options: Options, explore: bool) -> None:
        self.trees, self.keys, self.options = trees, keys, options
        legal = trees.legal[:, 0]
        if options.kind == "puct" and explore:
            trees.prior[:, 0] = _with_noise(trees.prior[:, 0], legal, keys, options)
        self.gumbel = np.zeros(legal.shape)
        if options.kind == "gumbel":
            if explore:
                self.gumbel = -np.log(-np.log(_per_action(keys, legal.shape[1], _GUMBEL)))
            plans = [rules.halving(int(min(options.considered, count)), options.simulations) for count in legal.sum(-1)]
            self.plan = np.array(plans)

    def simulate(self, simulation: int, evaluate: Evaluate) -> None:
        trees = self.trees
        path: list[tuple[np.ndarray, ...]] = []
        rows, node = trees.games, np.zeros(len(trees.games), np.int64)
        fresh: list[tuple[np.ndarray, ...]] = []
        while len(rows):
            action = self._choose(rows, node, simulation, len(path))
            outcome = self._outcome(rows, node, action)
            path.append((rows, node, action, outcome))
            child = trees.child[rows, node, action, outcome]
            new = child < 0
            if new.any():
                fresh.append(tuple(part[new] for part in path[-1]))
            on = ~new & ~trees.terminal[rows, child]
            rows, node = rows[on], child[on].astype(np.int64)
        if fresh:
            leaves, *edge = (np.concatenate(parts) for parts in zip(*fresh, strict=True))
            alive = leaves[trees.expand(leaves, edge, simulation + 1)]
            if len(alive):
                logits, value = evaluate(trees.observation)  # all games, so that the shape of the batch never changes
                trees.fill(alive, simulation + 1, logits[alive], value[alive])
        for step in reversed(path):
            trees.back_up(*step)

    def _choose(self, rows: np.ndarray, node: np.ndarray, simulation: int, depth: int) -> np.ndarray:
        """The action to look at, `[R]`, of one node of each of the games `rows`."""
        trees, options, at = self.trees, self.options, (rows, node)
        q, visits, prior, legal = trees.q[at], trees.visits[at], trees.prior[at], trees.legal[at]
        if options.kind == "puct":
            width = 1 if trees.game.bounds is None else 2  # AlphaZero's values are in [-1, 1], MuZero's of unknown scale in [0, 1]
            scores = rules.puct_scores(width * trees.scaled(rows, q), visits, prior, legal, options.c_puct)
        elif options.kind in SOFT:
            policy = rules.explored(rules.soft_policy(options.kind, q, prior, legal, options.temperature), legal, visits, options.epsilon)
            return choose(policy, uniforms(self.keys[rows], _ACTION, simulation, depth))
        else:
            logits = rules.improved_logits(trees.scaled(rows, rules.completed(q, visits, prior, trees.first[at])), visits, prior)
            if depth == 0:
                due = legal & (visits == self.plan[:, simulation, None])
                scores = np.where(due, self.gumbel + logits, -np.inf)
            else:
                policy = rules.softmax(logits, legal)
                scores = np.where(legal, policy - visits / (1 + visits.sum(-1, keepdims=True)), -np.inf)
        best: np.ndarray = scores.argmax(-1)
        return best

    def _outcome(self, rows: np.ndarray, node: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Chance's answer `[R]`: a rotation of the unit interval, see above."""
        trees = self.trees
        if trees.chance is None:
            return np.zeros(len(rows), np.int64)
        at = rows, node, action
        point = (uniforms(self.keys[rows], _CHANCE, 0, node * trees.game.actions + action) + trees.visits[at] * _GOLDEN) % 1.0
        met: np.ndarray = (trees.chance[at] <= point[:, None]).sum(-1)
        return met

    def result(self) -> Result:
        trees, options = self.trees, self.options
        q, visits, prior, legal = trees.q[:, 0], trees.visits[:, 0], trees.prior[:, 0], trees.legal[:, 0]
        if options.kind == "puct":
            policy = visits / visits.sum(-1, keepdims=True)
            action = np.where(legal, visits + trees.scaled(trees.games, q) / 2, -1.0).argmax(-1)  # of equally visited actions the better one
        elif options.kind in SOFT:
            policy = rules.soft_policy(options.kind, q, prior, legal, options.temperature)
            action = np.where(legal, q, -np.inf).argmax(-1) if options.kind != "rents" else policy.argmax(-1)
        else:
            logits = rules.improved_logits(trees.scaled(trees.games, rules.completed(q, visits, prior, trees.first[:, 0])), visits, prior)
            policy = rules.softmax(logits, legal)
            most = visits == np.where(legal, visits, -1).max(-1, keepdims=True)
            action = np.where(legal & most, self.gumbel + logits, -np.inf).argmax(-1)
        return Result(policy, action, trees.value[:, 0].copy(), q.copy(), visits.copy())


def choose(policy: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """An action a row by its probability, `(R, A), (R,) -> (R,)`; one of probability 0 is never drawn."""
    cumulative = policy.cumsum(-1)
    drawn: np.ndarray = (cumulative <= (uniform * (1 - 2**-40))[:, None] * cumulative[:, -1:]).sum(-1)
    return drawn


def _with_noise(prior: np.ndarray, legal: np.ndarray, keys: np.ndarray, options: Options) -> np.ndarray:
    """The prior mixed with a Dirichlet draw over the legal actions; gamma variates are quantiles of each game's own uniforms."""
    from scipy.special import gammaincinv

    gamma = np.where(legal, gammaincinv(options.dirichlet_alpha, _per_action(keys, prior.shape[1], _NOISE)), 0.0) + legal * 1e-12
    share = options.dirichlet_fraction
    noisy: np.ndarray = (1 - share) * prior + share * gamma / gamma.sum(-1, keepdims=True)
    return noisy


def _per_action(keys: np.ndarray, actions: int, purpose: int) -> np.ndarray:
    """Uniforms in (0, 1), `[G, A]`."""
    return np.stack([uniforms(keys, purpose, 0, action) for action in range(actions)], axis=-1) + 2.0**-54


def uniforms(keys: np.ndarray, purpose: int, simulation: int, place: int | np.ndarray) -> np.ndarray:
    """Uniforms in [0, 1) `[R]` that depend on key, purpose, simulation and place alone: a counter through the finaliser of SplitMix64.

    Source: Steele, Lea & Flood 2014 (doi:10.1145/2660193.2660195); the counter-based idea is Salmon et al. 2011's.
    """
    counter = np.atleast_1d(np.asarray(place, np.uint64)) + np.uint64((purpose << 60) + (simulation << 32) + 1)
    z = _mixed(keys + counter * np.uint64(0x9E3779B97F4A7C15))
    result: np.ndarray = (_mixed(z + np.uint64(0xD1B54A32D192ED03)) >> np.uint64(11)) * 2.0**-53
    return result


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed
