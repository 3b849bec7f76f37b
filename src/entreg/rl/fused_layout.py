"""Widths of the two networks of `fused`, and where their parameters and activations lie.

Parameters of a member, one row [P]: the actor's layers, then the critic's; of each layer the weight [inputs, outputs], then the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .fused_kernels import Space
from .fused_network import CHUNK
from .fused_tile import NARROW

LINE = 16  # float32 values of a cache line: vectors that cross lines cost 5 % of the whole update


def _up(width: int, multiple: int = NARROW) -> int:
    return -(-width // multiple) * multiple


class Plan(NamedTuple):
    """A layout as the kernels read it; sizes in float32 values."""

    table: NDArray[np.int64]  # one row a layer, columns as in `fused_network`
    split: int  # layers of the actor
    relu: bool
    size: int
    packed: int
    turned: int
    activations: int
    widest: int


@dataclass(frozen=True)
class Layout:
    """Widths of the actor (D, hidden..., A) and the critic (D, hidden..., 1), and the activation of their hidden layers.

    Raises ValueError where the widths are not positive, do not start with the same D, or the critic does not end with 1.

    >>> Layout((4, 64, 64, 2), (4, 64, 64, 1)).size
    9155
    """

    actor: tuple[int, ...]
    critic: tuple[int, ...]
    activation: Literal["tanh", "relu"] = "tanh"

    def __post_init__(self) -> None:
        for name, widths in (("actor", self.actor), ("critic", self.critic)):
            if len(widths) < 2 or min(widths) < 1 or widths[0] != self.actor[0]:
                raise ValueError(f"{name}: {widths} is not (observation width, hidden..., outputs) with positive widths and one observation width for both")
        if self.critic[-1] != 1:
            raise ValueError(f"critic: ends with {self.critic[-1]} outputs, must end with 1")
        if self.activation not in ("tanh", "relu"):
            raise ValueError(f"activation: {self.activation!r} is neither 'tanh' nor 'relu'")

    @property
    def size(self) -> int:
        """Parameters of one member, P."""
        return self.plan.size

    @property
    def actions(self) -> int:
        """Actions, A."""
        return self.actor[-1]

    @cached_property
    def plan(self) -> Plan:
        """Where everything lies inside."""
        rows = []
        flat = packed = turned = 0
        place = CHUNK * _up(self.actor[0])
        for widths in (self.actor, self.critic):
            for k, (i, o) in enumerate(pairwise(widths)):
                rows.append((i, o, _up(i), _up(o), flat, packed, turned if k else -1, place))
                flat, packed, place = flat + (i + 1) * o, packed + _up((_up(i) + 1) * _up(o), LINE), place + CHUNK * _up(o)
                turned += _up(i) * _up(o) if k else 0
        widest = max(_up(width) for width in (*self.actor, *self.critic))
        return Plan(np.array(rows, np.int64), len(self.actor) - 1, self.activation == "relu", flat, packed, turned + 1, place, widest)


def _aligned(size: int) -> NDArray[np.float32]:
    """Zeros [size] that start on a cache line."""
    buffer = np.zeros(size + LINE, np.float32)
    start = -(buffer.ctypes.data // 4) % LINE
    return buffer[start : start + size]


def space(layout: Layout, batch: int) -> Space:
    zeros, plan, chunk = _aligned, layout.plan, CHUNK
    return Space(
        work=zeros(plan.activations),
        scratch=zeros(chunk * plan.widest),
        zeros=zeros(plan.widest),
        ones=np.ones(1, np.float32),
        packed=zeros(plan.packed),
        turned=zeros(plan.turned),
        gradient=zeros(plan.packed),
        moment=zeros(plan.packed),
        square=zeros(plan.packed),
        legal=np.ones((layout.actions, chunk), np.bool_),
        columns=zeros(2 * layout.actions * chunk).reshape(2, -1, chunk),
        rows=zeros(8 * chunk).reshape(8, chunk),
        advantage=zeros(batch),
        sums=np.zeros(7),
    )
