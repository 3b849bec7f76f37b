"""Finding NaN and infinity in tensors, arrays and numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class NonFinite(RuntimeError):
    """A tensor held a NaN or an infinity; the message names it, the step and where."""


def all_finite(value: Any) -> bool:
    """Whether a torch tensor, NumPy array or number holds neither NaN nor infinity; integers never do.

    >>> all_finite(np.ones(3)), all_finite(float("nan"))
    (True, False)
    """
    if isinstance(value, np.ndarray | np.generic | float | int):
        return bool(np.isfinite(value).all())
    if math.isfinite(value.detach().sum().item()):  # then all of them are: 2 us where looking at each takes 6; finite ones may still have an infinite sum
        return True
    import torch  # what is no number and no array is a tensor, so torch is loaded

    return bool(torch.isfinite(value).all())


def where_not_finite(value: Any) -> str:
    """How many entries are not finite, and the first of them with its index.

    >>> where_not_finite(np.array([[0.0, 1.0], [np.inf, np.nan]]))
    '2 of 4 values are not finite, the first is inf at [1, 0]'
    """
    array = value if isinstance(value, np.ndarray | np.generic | float | int) else value.detach().double().cpu().numpy()
    array = np.asarray(array)
    wrong = np.argwhere(~np.isfinite(array))
    first = [int(i) for i in wrong[0]]
    return f"{len(wrong)} of {array.size} values are not finite, the first is {array[tuple(first)]} at {first}"
