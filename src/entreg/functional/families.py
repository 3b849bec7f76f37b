"""Entropy families: each is the Rényi entropy at one order, sent through a monotone transform, so a distribution implements `R_a` and nothing else.

Orders are Python floats and never tensors: a float32 tensor turns 1 + 1e-7 into 1 + 1.19e-7. Values are nats, except Tsallis at q != 1, which has no logarithm.
Transforms are module-level functions or frozen dataclasses, so that a family pickles, compares equal and can be a key.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor


class Family(NamedTuple):
    """A way to turn a distribution into one number: `from_renyi(R_order)`.

    `name` and `order` are its public spelling; `from_renyi` keeps shape and is increasing.

    >>> SHANNON.name, SHANNON.order, renyi(2)
    ('shannon', 1.0, renyi(2.0))
    """

    name: str
    order: float
    from_renyi: Callable[[Tensor], Tensor]

    def __repr__(self) -> str:
        """Its public spelling."""
        return self.name if self.name in ("shannon", "min_entropy") else f"{self.name}({self.order!r})"


def _identity(renyi_entropy: Tensor) -> Tensor:
    return renyi_entropy


@dataclass(frozen=True)
class _Tsallis:
    """`R_q -> expm1((1 - q) R_q) / (1 - q)`, any shape: right also where q is within 1e-7 of 1, because 1 - q stays a Python float."""

    one_minus_order: float

    def __call__(self, renyi_entropy: Tensor) -> Tensor:
        return torch.expm1(self.one_minus_order * renyi_entropy) / self.one_minus_order


SHANNON = Family("shannon", 1.0, _identity)
"""Shannon entropy `-sum p log p`, nats: the default everywhere."""

min_entropy = Family("min_entropy", math.inf, _identity)
"""Min-entropy `-log max p`, nats: Rényi at order infinity."""


def _checked(order: float, largest: float, legal: str) -> float:
    if isinstance(order, Real) and 0 <= order <= largest:  # not NaN
        return float(order)
    raise ValueError(f"order: got {order!r}, legal is {legal}")


@lru_cache(maxsize=256)
def renyi(order: float) -> Family:
    """The Rényi family `R_a = log(sum p^a) / (1 - a)`, nats.

    Order 1 is Shannon, exactly (the limit, not an epsilon away); 0 is the log of the support size, 2 the collision entropy, inf the min-entropy. Concave only
    for orders up to 1. Raises ValueError for a negative or NaN order, and for what is no number.

    >>> renyi(2).order, renyi(2) == renyi(2.0)
    (2.0, True)

    Source: Rényi 1961, "On measures of entropy and information", eq. 1.21 (there in bits).
    """
    return Family("renyi", _checked(order, math.inf, "a number >= 0, or inf"), _identity)


@lru_cache(maxsize=256)
def tsallis(order: float) -> Family:
    """The Tsallis family `T_q = (1 - sum p^q) / (q - 1)`; order 1 is Shannon in nats, exactly, and order 0 the support size minus one.

    Neither entmax's `1/(a(a-1))` nor the 1/2 of the sparsemax papers is in it. Raises ValueError for a negative, NaN or infinite order (at infinity it is
    identically 0).

    >>> tsallis(2).from_renyi(torch.tensor(0.5).log().neg())       # a fair coin: 1 - 1/2
    tensor(0.5000)

    Source: Tsallis 1988, "Possible generalization of Boltzmann-Gibbs statistics", eq. 1 with k = 1.
    """
    order = _checked(order, sys.float_info.max, "a finite number >= 0")
    return Family("tsallis", order, _identity if order == 1 else _Tsallis(1 - order))


def curvature(family: Family, classes: int) -> float:
    """How strongly a family pulls towards uniform over `classes` allowed classes: `c` in `H_max - H ~ c V sum (p - 1/V)^2`.

    `c = (a/2) from_renyi'(log V)`: 1/2 for Shannon, a/2 for Rényi, (q/2) V^(1-q) for Tsallis. Coefficients divided by it are equally strong near uniform, and
    only there. Raises ValueError for fewer than one class, and at orders 0 and infinity, where no match exists.

    >>> curvature(SHANNON, 10), curvature(renyi(2), 10), round(curvature(tsallis(2), 10), 6)
    (0.5, 1.0, 0.1)
    """
    if not classes >= 1:  # also NaN
        raise ValueError(f"classes: got {classes}, legal is an integer >= 1")
    if family.order == 0 or math.isinf(family.order):
        raise ValueError(f"family: got {family.name} at order {family.order}, legal is a finite order > 0 (no curvature exists at 0 and infinity)")
    slope = torch.func.grad(family.from_renyi)(torch.tensor(math.log(classes), dtype=torch.float64))
    return family.order / 2 * float(slope)
