"""EntropyRegularizer: entropies in, a loss term out, and a controller that sets its coefficient. The one stateful object of the library:
a `Bridge` of which the host is a window of tensors.

Entropies are nats of any shape (*), one per item (state, token, sample); a window is what is called between two `step()`s: one batch, or the micro-batches of a
gradient accumulation. It is kept as a sum and a weight, never as a mean, so that micro-batches and ranks of unequal length add up to the full batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from entreg.bridge import SENSES, Bridge
from entreg.control import Controller
from entreg.schedules import positive


class Term(NamedTuple):
    """What one call gives: `loss`, a scalar to be added; `entropy`, the mean of the items that count, detached, nats; the `coef` that was used."""

    loss: Tensor
    entropy: Tensor
    coef: float


class EntropyRegularizer:
    """Weighs entropies (*) by a coefficient that its controller moves once a `step()`: loss = -coef * mean(entropy), or + with sense "minimize".

    Never calls `backward`, owns no optimizer, logs nothing; `coef`, `entropy` (the mean that the last step read, NaN before) and `target` are there to be
    logged. Call it for training batches only: what it is called with is what the controller sees.

    sense       "maximize": the loss falls when entropy grows; "minimize": when it falls. The controller's feedback turns with it.
    all_reduce  returns the SUM over ranks of a tensor (2,); every rank then has the same state. Called once a step.
    lag         0: `step()` reads this window's entropy, one host sync. 1: the previous window's, so that a GPU never waits; the first step changes nothing.

    >>> from entreg.control import linear
    >>> regularizer = EntropyRegularizer(linear(0.5, 0.0, steps=2))
    >>> entropy = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> term = regularizer(entropy)
    >>> term.loss.backward()
    >>> term.loss.item(), term.entropy.item(), entropy.grad.tolist()
    (-1.0, 2.0, [-0.25, -0.25])
    >>> regularizer.step()
    >>> regularizer.coef
    0.25
    """

    def __init__(
        self,
        controller: Controller[Any] | float,
        *,
        sense: Literal["maximize", "minimize"] = "maximize",
        all_reduce: Callable[[Tensor], Tensor] | None = None,
        lag: int = 0,
    ) -> None:
        if lag not in (0, 1):
            raise ValueError(f"lag={lag!r}; legal: 0 or 1")
        self.coef = self.entropy = self._mean = math.nan
        self._all_reduce, self._lag = all_reduce, lag
        self.bridge = Bridge(controller, self._measured, self._weigh, sense=sense)
        self.controller, self.sense = self.bridge.controller, SENSES[sense]
        self._total: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0
        self._late: tuple[Tensor, torch.cuda.Event | None] | None = None

    def __call__(self, entropy: Tensor, mask: Tensor | None = None, *, denominator: Tensor | float | None = None) -> Term:
        """The term of one (micro-)batch: entropy (*), mask (*) nonzero where an item counts -> scalar loss.

        `denominator` replaces the local count of items: the count of the accumulation window, or the global count divided by the world size where gradients are
        averaged over ranks. A fused update that knows only its mean passes one element, under no_grad.
        """
        dtype = torch.promote_types(entropy.dtype, torch.float32)
        weight: Tensor | int
        if mask is None:
            total, weight = entropy.sum(dtype=dtype), entropy.numel()
            count: Tensor | float = weight or 1
        else:
            if mask.shape != entropy.shape:
                raise ValueError(f"mask: shape {tuple(mask.shape)}; legal: that of entropy, {tuple(entropy.shape)}")
            keep = mask.bool()
            total, weight = torch.where(keep, entropy, 0.0).sum(dtype=dtype), keep.sum()
            count = weight.clamp(min=1)
        self._total, self._weight = self._total + total.detach(), self._weight + weight
        mean = total / count
        if denominator is None:
            loss = mean * (-self.sense * self.coef)
        else:
            divisor = denominator if isinstance(denominator, Tensor) else positive("denominator", denominator)
            if isinstance(divisor, Tensor) and divisor.ndim > 0:
                raise ValueError(f"denominator: shape {tuple(divisor.shape)}; legal: one number, as a float or a tensor of shape ()")
            loss = total / divisor * (-self.sense * self.coef)
        return Term(loss, mean.detach(), self.coef)

    def observe(self, entropy: float, weight: float = 1.0) -> None:
        """Counts a mean entropy of `weight` items that was measured elsewhere (by a fused update, say) into the window, without a term."""
        self._total, self._weight = self._total + entropy * weight, self._weight + weight

    def step(self, **signals: float) -> None:
        """One step of the controller on the window's mean entropy and the named signals (`reward`, `kl`, `grad_share`, `progress`); a new window begins.

        ValueError where a signal that the controller reads is absent or not finite; nothing has changed then.
        """
        if self._lag == 1:
            self._step_late(signals)
        elif self._all_reduce is None and not isinstance(self._weight, Tensor):
            self._update(float(self._total), self._weight, signals)  # the one host sync
        else:
            self._read(self._window(), signals)
        self._total, self._weight = 0.0, 0.0

    def _step_late(self, signals: Mapping[str, float]) -> None:
        window, event = self._window(), None
        if window.is_cuda:
            window = window.to("cpu", non_blocking=True)  # into pinned memory: nothing waits here
            event = torch.cuda.Event()
            event.record()
        if self._late is not None:
            self._read(self._arrived(self._late), signals)
        self._late = window, event

    @staticmethod
    def _arrived(late: tuple[Tensor, torch.cuda.Event | None]) -> Tensor:
        """The window of an earlier step, once its copy from the device is complete."""
        window, copied = late
        if copied is not None:
            copied.synchronize()
        return window

    def _window(self) -> Tensor:
        """(2,): sum and weight of the window, over all ranks."""
        total = self._total if isinstance(self._total, Tensor) else torch.tensor(self._total, dtype=torch.float64)
        window = torch.stack((total, torch.as_tensor(self._weight, dtype=total.dtype, device=total.device)))
        return window if self._all_reduce is None else self._all_reduce(window)

    def _read(self, window: Tensor, signals: Mapping[str, float]) -> None:
        total, weight = window.tolist()
        self._update(total, weight, signals)

    def _update(self, total: float, weight: float, signals: Mapping[str, float]) -> None:
        self._mean = total / weight if weight > 0 else math.nan
        self.bridge.step(**signals)
        self.entropy = self._mean

    def _measured(self) -> float:
        return self._mean

    def _weigh(self, coef: float) -> None:
        self.coef = coef

    @property
    def target(self) -> float | None:
        """The entropy that the controller wants now, nats; None where it has no single target."""
        return self.bridge.target

    def state_dict(self) -> dict[str, Any]:
        """Everything that `step()` depends on, as plain JSON numbers: the controller's state, the open window, the late one."""
        late = None if self._late is None else self._arrived(self._late).tolist()
        return {"controller": self.bridge.state_dict(), "window": [float(self._total), float(self._weight)], "late": late}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; ValueError, and nothing changed, where the state is another controller's."""
        if set(state) != {"controller", "window", "late"}:
            raise ValueError(f"state: {sorted(state)}; legal: the fields controller, window, late")
        total, weight = _pair("window", state["window"])
        late = None if state["late"] is None else (torch.tensor(_pair("late", state["late"]), dtype=torch.float64), None)
        self.bridge.load_state_dict(state["controller"])
        self._total, self._weight, self._late = total, weight, late


def _pair(name: str, value: Any) -> tuple[float, float]:
    """A saved sum and weight; the sum is NaN where an entropy was."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, Real) for part in value):
        return float(value[0]), float(value[1])
    raise ValueError(f"state: {name}={value!r}; legal: two numbers, a sum and a weight")


def stacked(each: Sequence[EntropyRegularizer], entropy: Tensor) -> Term:
    """One call of every member's regularizer on its row of entropies (M, N), in a handful of tensor operations instead of some for each member.

    Gives the sum of the members' losses, so that each gets exactly its own gradient; their mean entropies (M,); NaN as the coefficient, which they do not
    share. One host sync: meant for populations of small networks on a CPU (48 members of 256 items, forward and backward: .1 ms, one by one 1.3 ms).
    ValueError where the rows are not one a member, or empty.

    >>> term = stacked([EntropyRegularizer(0.5), EntropyRegularizer(0.0)], torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
    >>> term.loss.item(), term.entropy.tolist()
    (-1.0, [2.0, 5.0])
    """
    if entropy.ndim != 2 or len(entropy) != len(each) or entropy.shape[1] == 0:
        raise ValueError(f"entropy: shape {tuple(entropy.shape)}; legal: ({len(each)}, N), a row a member and at least one item in it")
    means = entropy.mean(1, dtype=torch.promote_types(entropy.dtype, torch.float32))
    for regularizer, mean in zip(each, means.tolist(), strict=True):
        regularizer.observe(mean, entropy.shape[1])
    signed = torch.tensor([-regularizer.sense * regularizer.coef for regularizer in each], dtype=means.dtype, device=means.device)
    return Term(means @ signed, means.detach(), math.nan)
