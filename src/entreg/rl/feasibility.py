"""How many states a squashed Gaussian policy can give the entropy that is asked for, whatever its standard deviations.

At a mean far from 0 (before the tanh) no standard deviation reaches SAC's usual target of -1 a dimension, and a learned coefficient then grows without end.
Shapes: M members, B states, A action dimensions.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from entreg.functional import Family
from entreg.functional.continuous import squashed_renyi

_FARTHEST, _POINTS = 20.0, 401  # beyond, the entropy falls by two nats for each unit of |mean|: it is -2 E|u| and what does not depend on the mean
_STDS = 161


@lru_cache(maxsize=16)
def _best(order: float, low: float, high: float) -> np.ndarray:
    """The largest entropy (Rényi, one dimension) at |mean| = 0 ... `_FARTHEST` over log_std in [low, high], `[_POINTS]`."""
    mean = torch.linspace(0.0, _FARTHEST, _POINTS)[:, None]
    log_std = torch.linspace(max(low, -3.0), high, _STDS)[None]
    best: np.ndarray = squashed_renyi(mean, log_std, order).max(1).values.numpy()
    return best


def infeasible(mean: Tensor, target: float, family: Family, limits: tuple[float, float]) -> Tensor:
    """Share of the states `[B]` in which no log_std within `limits` gives the entropy `target`, from means `[B, A]` before the tanh, `-> []`.

    >>> from entreg.functional import SHANNON
    >>> infeasible(torch.tensor([[0.0], [1.8], [1.9], [-4.0]]), -1.0, SHANNON, (-20.0, 2.0))
    tensor(0.5000)
    """
    distance = mean.detach().abs().numpy()
    grid = np.linspace(0.0, _FARTHEST, _POINTS)
    best = np.interp(distance, grid, _best(family.order, *limits)) - 2.0 * np.maximum(distance - _FARTHEST, 0.0)
    reached = family.from_renyi(torch.from_numpy(best).sum(-1))
    return (reached < target).float().mean()
