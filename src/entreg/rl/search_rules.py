"""What a search makes of the action values of its nodes: values, policies and scores, a row a node, in NumPy.

Shapes: R nodes (one a game), A actions; q, prior, scores `[R, A]` float64, legal `[R, A]` bool, visits `[R, A]` whole numbers, values `[R]`.
The soft rules are the conjugates of MATH's section "Maximum-entropy control" at temperature tau, for all rows at once; `functional.soft` has them for tensors.
"""

import math
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

Kind = Literal["puct", "ments", "rents", "tents", "gumbel"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SOFT = ("ments", "rents", "tents")
C_VISIT, C_SCALE = (
    50.0,
    0.1,
)  # Danihelka et al. 2022 for values in [0, 1], whose scale is 1; with that, self-play from one opening lacks variety (docs/recipes/alphazero.md)
_LEAST = 1e-300  # stands for probability 0 where a logarithm is taken


def softmax(logits: np.ndarray, legal: np.ndarray) -> np.ndarray:
    """Probabilities over the legal actions, `(R, A) -> (R, A)`; illegal ones get 0.

    >>> softmax(np.array([[0.0, 0.0, 9.0]]), np.array([[True, True, False]])).tolist()
    [[0.5, 0.5, 0.0]]
    """
    masked = np.where(legal, logits, -np.inf)
    weights = np.exp(masked - masked.max(-1, keepdims=True))
    result: np.ndarray = weights / weights.sum(-1, keepdims=True)
    return result


def log_sum_exp(scores: np.ndarray) -> np.ndarray:
    """`log sum exp` of every row; minus infinity drops an entry."""
    most = scores.max(-1, keepdims=True)
    result: np.ndarray = most[..., 0] + np.log(np.exp(scores - most).sum(-1))
    return result


def sparsemax(scores: np.ndarray, legal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The projection of every row on the simplex of its legal actions, and the threshold kappa: p = max(scores - kappa, 0).

    Source: Martins & Astudillo 2016 (arXiv:1602.02068), algorithm 1.

    >>> p, kappa = sparsemax(np.array([[1.0, 0.7, 0.2, -0.5]]) / 1.2, np.ones((1, 4), bool))
    >>> p.round(3).tolist()
    [[0.625, 0.375, 0.0, 0.0]]
    """
    masked = np.where(legal, scores, -np.inf)
    ordered = -np.sort(-masked, axis=-1)
    total = np.where(np.isfinite(ordered), ordered, 0.0).cumsum(-1)
    rank = np.arange(1, scores.shape[-1] + 1)
    support = (1 + rank * ordered > total).sum(-1)
    kappa = (np.take_along_axis(total, support[:, None] - 1, -1)[:, 0] - 1) / support
    return np.maximum(masked - kappa[:, None], 0.0), kappa


def start_values(kind: Kind, value: np.ndarray, prior: np.ndarray, tau: float) -> np.ndarray:
    """What actions count for before their first visit, `(R,), (R, A) -> (R, A)`: values whose soft value is the network's and whose soft policy its prior.

    puct, gumbel: v.   ments: v + tau log p.   rents: v, as the prior stands in its policy already.   tents: v + 2 tau p - tau (1 + sum p^2).
    """
    above: np.ndarray = np.zeros_like(prior)
    if kind == "ments":
        above = tau * np.log(np.maximum(prior, _LEAST))
    if kind == "tents":
        above = 2 * tau * prior - tau * (1 + np.square(prior).sum(-1, keepdims=True))
    result: np.ndarray = value[:, None] + above
    return result


def backed_up(kind: Kind, q: np.ndarray, visits: np.ndarray, prior: np.ndarray, legal: np.ndarray, first: np.ndarray, tau: float) -> np.ndarray:
    """A node's value from those of its actions, `(R,)`; `first` is what the network said.

    puct, gumbel: mean of `first` and all visits.   ments: tau log sum exp(q / tau).   rents: tau log sum prior exp(q / tau).
    tents: 2 tau spmax(q / (2 tau)), spmax(x) = 1/2 + 1/2 sum over the support of (x^2 - kappa^2).

    >>> q, legal, prior = np.array([[1.0, 0.7, 0.2, -0.5]]), np.ones((1, 4), bool), np.full((1, 4), 0.25)
    >>> backed_up("tents", q, q, prior, legal, q[:, 0], 0.6).round(5).tolist()
    [1.16875]

    Source: Xiao et al. 2019 (MENTS), eq. 9; Dam et al. 2021 (arXiv:2007.00391), table 1, whose tau is 2 ours for TENTS.
    """
    if kind == "ments":
        return tau * log_sum_exp(np.where(legal, q / tau, -np.inf))
    if kind == "rents":
        return tau * log_sum_exp(np.where(legal, q / tau + np.log(np.maximum(prior, _LEAST)), -np.inf))
    if kind == "tents":
        x = q / (2 * tau)
        p, kappa = sparsemax(x, legal)
        spmax = 0.5 + 0.5 * np.where(p > 0, np.square(x) - np.square(kappa)[:, None], 0.0).sum(-1)
        return np.asarray(2 * tau * spmax)
    mean: np.ndarray = (first + (visits * q).sum(-1)) / (1 + visits.sum(-1))
    return mean


def soft_policy(kind: Kind, q: np.ndarray, prior: np.ndarray, legal: np.ndarray, tau: float) -> np.ndarray:
    """The gradient of the soft value: softmax, softmax that starts at the prior, or sparsemax, `(R, A)`."""
    if kind == "tents":
        return sparsemax(q / (2 * tau), legal)[0]
    return softmax(q / tau + (np.log(np.maximum(prior, _LEAST)) if kind == "rents" else 0.0), legal)


def explored(policy: np.ndarray, legal: np.ndarray, visits: np.ndarray, epsilon: float) -> np.ndarray:
    """(1 - l) policy + l uniform with l = min(1, epsilon |A| / log(N + 1)), N the visits of the node, its first one included.

    Source: Xiao et al. 2019, eq. 10 (E2W).
    """
    count = legal.sum(-1)
    share = np.minimum(1.0, epsilon * count / np.log(visits.sum(-1) + 2.0))[:, None]
    result: np.ndarray = (1 - share) * policy + share * legal / count[:, None]
    return result


def puct_scores(q: np.ndarray, visits: np.ndarray, prior: np.ndarray, legal: np.ndarray, c_puct: float) -> np.ndarray:
    """q + c prior sqrt(N) / (1 + n) with q in [0, 1] or as wide as [-1, 1], and N the visits of all actions (at least 1, so that the prior decides the first).

    Source: Silver et al. 2018 (doi:10.1126/science.aar6404), with a constant c.
    """
    total = np.sqrt(np.maximum(visits.sum(-1, keepdims=True), 1))
    return np.where(legal, q + c_puct * prior * total / (1 + visits), -np.inf)


def completed(q: np.ndarray, visits: np.ndarray, prior: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Action values with the mixed value estimate where nothing was visited, `(R, A)`.

    v_mix = (first + N sum_visited(prior q) / sum_visited(prior)) / (1 + N).   Source: Danihelka et al. 2022, eq. 33.
    """
    seen = visits > 0
    weight = np.where(seen, np.maximum(prior, _LEAST), 0.0)
    mass = weight.sum(-1)
    mean = (weight * q).sum(-1) / np.where(mass > 0, mass, 1.0)
    total = visits.sum(-1)
    mixed = (first + total * mean) / (1 + total)
    return np.where(seen, q, mixed[:, None])


def improved_logits(scaled: np.ndarray, visits: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """log prior + (c_visit + max n) c_scale q for completed q in [0, 1].   Source: Danihelka et al. 2022, eq. 8 and 11."""
    result: np.ndarray = np.log(np.maximum(prior, _LEAST)) + (C_VISIT + visits.max(-1, keepdims=True)) * C_SCALE * scaled
    return result


@lru_cache(maxsize=1024)
def halving(considered: int, simulations: int) -> tuple[int, ...]:
    """How often the action that a simulation looks at must have been visited before: sequential halving of `considered` actions.

    Every phase visits the actions that are left equally often, then the better half stays (two to the end).

    >>> halving(4, 16)
    (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)

    Source: Danihelka et al. 2022, section 3.2 (algorithm 2); Karnin et al. 2013.
    """
    if considered <= 1:
        return tuple(range(simulations))
    phases = math.ceil(math.log2(considered))
    left, visits = considered, 0
    result: list[int] = []
    while len(result) < simulations:
        for _ in range(max(1, simulations // (phases * left))):
            result += [visits] * left
            visits += 1
        left = max(2, left // 2)
    return tuple(result[:simulations])
