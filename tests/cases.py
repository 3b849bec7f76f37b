"""What is tested everywhere: one row per family, per distribution and per controller. Adding one of them is adding its row.

Families x distributions are tested in `functional/test_families.py`, controllers in `test_control.py`.
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


DISTRIBUTIONS = [
    DistributionCase("categorical", functional.categorical_entropy, reference.discrete_entropy, _logits),
    DistributionCase("masked categorical", functional.categorical_entropy, reference.discrete_entropy, _masked_logits),
    DistributionCase("bernoulli", functional.bernoulli_entropy, reference.bernoulli_entropy, lambda rng, n: (rng.normal(size=n) * 3,)),
    # continuous distributions: their rows come below this line
]


# --- controllers: their rows and the class of a row come below this line ----------------------------------------------------------------------------
