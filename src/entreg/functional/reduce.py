"""Sums and weights, never means: a mean of means is wrong as soon as micro-batches or ranks differ in size, a sum of sums is not.

Shapes: `*` batch, `T` a dimension that is summed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from entreg.functional._precision import full_precision


class Tally(NamedTuple):
    """A sum and the weight behind it: tallies of micro-batches and of ranks add up to the tally of the whole.

    >>> whole = tally(torch.tensor([1.0, 2.0])) + tally(torch.tensor([6.0]))
    >>> whole.mean
    tensor(3.)
    """

    total: Tensor
    weight: Tensor

    def __add__(self, other: "Tally") -> "Tally":  # type: ignore[override]
        return Tally(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> Tensor:
        """`total / weight`; NaN where nothing was counted."""
        return self.total / self.weight


def tally(values: Tensor, mask: Tensor | None = None, *, dim: int | tuple[int, ...] | None = None) -> Tally:
    """Sum of the values that count and how many they are, over everything, or over `dim` alone (-1 for per-sequence sums `[*, T] -> [*]`).

    `mask` (broadcast to the values) is boolean, or a weight >= 0 an item. What it leaves out may be NaN or infinite without touching total or gradient. Half
    precisions and integers are summed in float32: float16 ends at 65504 items. Raises ValueError where the mask does not fit.

    >>> lengths = torch.tensor([[True, True, False], [True, False, False]])
    >>> tally(torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]), lengths, dim=-1)
    Tally(total=tensor([3., 3.]), weight=tensor([2., 1.]))
    """
    values = full_precision(values)
    weight = torch.ones_like(values) if mask is None else mask.to(values.dtype).detach()
    try:
        weight = weight.expand_as(values)
    except RuntimeError:
        raise ValueError(f"mask: got shape {tuple(weight.shape)}, legal is one that broadcasts to {tuple(values.shape)}") from None
    if mask is not None:
        values = torch.where(weight != 0, values, 0) * weight
    return Tally(values.sum(dim), weight.sum(dim))
