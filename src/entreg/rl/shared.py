"""Optimizers of several processes over parameters and statistics in shared memory, without locks.

Shapes: M members, P parameters of one; everything shared is `[M, P]`. A step of one process may fall into that of another: a few numbers are then
updated from values that are a moment old, which is what makes waiting unnecessary (Recht et al. 2011, Hogwild).
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from entreg.stacked import FlatParameters, StackedAdam

Rule = Literal["rmsprop", "adam"]
DECAY, EPS = 0.99, 1e-5


class Shared(NamedTuple):
    """What the processes share: the parameters, and the optimizer's statistics by name."""

    data: Tensor
    statistics: dict[str, Tensor]


def share(data: Tensor, rule: Rule) -> Shared:
    """The parameters `data [M, P]`, moved where they stand into memory that processes share, and statistics at zero."""
    names = ("square",) if rule == "rmsprop" else ("first", "second")
    statistics = {name: torch.zeros_like(data).share_memory_() for name in names}
    if rule == "adam":
        statistics["steps"] = torch.zeros(len(data), dtype=torch.int64).share_memory_()
    return Shared(data.share_memory_(), statistics)


class _SharedOptimizer:
    """Moves the shared parameters by the gradient of the `local` ones."""

    def __init__(self, local: FlatParameters, shared: Shared) -> None:
        self.local, self.shared = local, shared

    def state_dict(self) -> dict[str, Any]:
        return dict(self.shared.statistics)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in self.shared.statistics.items():
            value.copy_(state[name])


class SharedRMSprop(_SharedOptimizer):
    """RMSprop with a running mean of squared gradients that all processes keep together: g = a g + (1 - a) d^2, w -= lr d / sqrt(g + eps).

    Source: Mnih et al. 2016 (arXiv:1602.01783), supplementary 4, eq. 8 and 9; there a = .99 and eps = .1.
    """

    def step(self, lr: float, active: Tensor | None = None) -> None:
        """One step for every member; leaving members out (`active`) is Adam's."""
        assert active is None
        grad, square = self.local.grad, self.shared.statistics["square"]
        square.mul_(DECAY).addcmul_(grad, grad, value=1 - DECAY)
        self.shared.data.addcdiv_(grad, (square + EPS).sqrt_(), value=-lr)


class SharedAdam(_SharedOptimizer):
    """`StackedAdam` whose moments and step counts all processes keep together."""

    def __init__(self, local: FlatParameters, shared: Shared) -> None:
        super().__init__(local, shared)
        self.everyones = FlatParameters(len(shared.data), {"all": shared.data.shape[1:]})
        self.everyones.data = shared.data
        self.adam = StackedAdam(self.everyones)
        self.adam.first, self.adam.second, self.adam.steps = (shared.statistics[name] for name in ("first", "second", "steps"))

    def step(self, lr: float, active: Tensor | None = None) -> None:
        """One step for every member, or for those of the boolean `active [M]`."""
        self.everyones.grad = self.local.grad
        self.adam.step(lr, active)


OPTIMIZERS: Mapping[Rule, type[SharedRMSprop] | type[SharedAdam]] = {"rmsprop": SharedRMSprop, "adam": SharedAdam}
