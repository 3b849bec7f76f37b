"""Twin critics of continuous actions and their slow copies, of all members as one stacked network.

Shapes: M members, B items, D observation, A numbers of an action. Rows 2 m and 2 m + 1 are the twins of member m, so that both are one product.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from entreg import stacked
from entreg.rl.networks import uniform_
from entreg.stacked import FlatParameters


class TwinCritics:
    """Two values of every state and action, `Q(s, a)`, and target networks that follow them; `generators` hold one source of initial weights a member."""

    def __init__(self, inputs: int, hidden: Sequence[int], activation: Literal["tanh", "relu"], generators: Sequence[torch.Generator]) -> None:
        self.activation = activation
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (size_in, size_out) in enumerate(itertools.pairwise((inputs, *hidden, 1))):
            shapes |= {f"critic.{layer}.weight": (size_in, size_out), f"critic.{layer}.bias": (size_out,)}
        self._tower = [(f"critic.{layer}.weight", f"critic.{layer}.bias") for layer in range(len(hidden) + 1)]
        self.parameters, self.target = (FlatParameters(2 * len(generators), shapes) for _ in range(2))
        with torch.no_grad():
            for row, generator in enumerate(generator for generator in generators for _ in range(2)):
                for name, value in self.parameters.plain.items():
                    uniform_(value[row], shapes, name, generator)
            self.target.data.copy_(self.parameters.data)

    def __call__(self, items: Tensor, *, frozen: bool = False) -> Tensor:
        """Both values of observations joined with actions, `(M, B, D + A) -> (M, 2, B)`; `frozen` critics get no gradient, actions do."""
        return self._values(items, self.parameters, frozen)

    def slow(self, items: Tensor) -> Tensor:
        """Both values by the target networks, `(M, B, D + A) -> (M, 2, B)`, without gradient."""
        return self._values(items, self.target, True)

    def _values(self, items: Tensor, parameters: FlatParameters, frozen: bool) -> Tensor:
        (values,) = stacked.mlps(items.repeat_interleave(2, 0), parameters, [self._tower], self.activation, frozen=frozen)
        return values.view(len(items), 2, -1)

    def follow(self, tau: float) -> None:
        """Move the target networks by the share `tau` of the way to the critics."""
        self.target.data.lerp_(self.parameters.data, tau)

    def state_dict(self) -> dict[str, Any]:
        return {"critics": self.parameters.data, "slow": self.target.data}

    def load_state_dict(self, state: Any) -> None:
        self.parameters.data.copy_(state["critics"])
        self.target.data.copy_(state["slow"])
