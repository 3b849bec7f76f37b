"""What is tested everywhere: one row per family and per distribution. Adding one of them is adding its row.

Every family on every distribution is tested in `functional/test_families.py`; controllers have their rows in `controller_cases.py`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from entreg import functional, reference
from entreg.functional import SHANNON, Family, min_entropy, renyi, tsallis


class FamilyCase(NamedTuple):
    family: Family
    kind: str  # as `reference` spells it
    order: float


class DistributionCase(NamedTuple):
    name: str
    entropy: Callable[..., Tensor]  # (*parameters, family) -> [*]
    oracle: Callable[..., np.ndarray]  # (*parameters, kind, order) -> [*], float64
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, ...]]  # parameters of n distributions
    orders: tuple[float, float] = (0, math.inf)  # legal and tested, both ends included
    tolerance: float = 2e-9  # relative and absolute, in float64


# --- families ---------------------------------------------------------------------------------------------------------------------------------------
FAMILIES = [
    FamilyCase(SHANNON, "shannon", 1),
    FamilyCase(min_entropy, "min_entropy", math.inf),
    *(FamilyCase(renyi(a), "renyi", a) for a in (0, 0.25, 0.5, 1 - 1e-6, 1 - 1e-7, 1, 1 + 1e-7, 1 + 1e-6, 1.5, 2, 5, 10, math.inf)),
    *(FamilyCase(tsallis(q), "tsallis", q) for q in (0, 0.5, 1 - 1e-7, 1, 1 + 1e-7, 1.5, 2, 5)),
]


# --- distributions ----------------------------------------------------------------------------------------------------------------------------------
def _logits(rng: np.random.Generator, n: int) -> tuple[np.ndarray]:
    return (rng.normal(size=(n, 7)) * 2,)


def _masked_logits(rng: np.random.Generator, n: int) -> tuple[np.ndarray]:
    logits = rng.normal(size=(n, 7)) * 2
    logits[:, 1:][rng.random((n, 6)) < 0.4] = -np.inf
    return (logits,)


def _log_std(rng: np.random.Generator, n: int) -> tuple[np.ndarray]:
    return (rng.uniform(-2, 1, (n, 3)),)


def _scale_tril(rng: np.random.Generator, n: int) -> tuple[np.ndarray]:
    return (np.tril(rng.normal(size=(n, 3, 3)), -1) + np.exp(_log_std(rng, n)[0])[..., None] * np.eye(3),)


def _mean_and_log_std(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(n, 2)), _log_std(rng, n)[0][:, :2]


DISTRIBUTIONS = [
    DistributionCase("categorical", functional.categorical_entropy, reference.discrete_entropy, _logits),
    DistributionCase("masked categorical", functional.categorical_entropy, reference.discrete_entropy, _masked_logits),
    DistributionCase("bernoulli", functional.bernoulli_entropy, reference.bernoulli_entropy, lambda rng, n: (rng.normal(size=n) * 3,)),
    DistributionCase("gaussian", functional.gaussian_entropy, reference.gaussian_entropy, _log_std, (0.25, math.inf)),
    DistributionCase("full gaussian", functional.multivariate_gaussian_entropy, reference.multivariate_gaussian_entropy, _scale_tril, (0.25, math.inf)),
    DistributionCase("tanh gaussian", functional.tanh_gaussian_entropy, reference.squashed_gaussian_entropy, _mean_and_log_std, (0.5, 5), 1e-5),
]
