"""Calling somebody's loss: with and without its entropy term, at any logits, actions, mask or rows, and always with the same random numbers.

The term is what the loss gains when `coef` goes from 0 to its value, divided by it: whatever else is in the loss cancels. `leaf` as in `heads`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entreg.linting.heads import Head

SAMPLED = ("actions", "old_log_prob", "reference_log_prob")  # what changes when actions are drawn again


class Slope(NamedTuple):
    """A value and its gradient with respect to the leaf `[*, K]`."""

    value: Tensor
    grad: Tensor

    def minus(self, other: Slope, scale: float) -> Slope:
        return Slope((self.value - other.value) / scale, (self.grad - other.grad) / scale)

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self.value)) and bool(torch.isfinite(self.grad).all())


@dataclass(frozen=True)
class Contract:
    """What the caller says is wanted: the sign, the weights of items, the policy."""

    coef: float | None
    kl_coef: float | None
    sign: int  # +1: the loss should fall when entropy grows
    sequences: bool
    denominator: float | None
    reference: Tensor | None

    def weights(self, like: Tensor, mask: Tensor | None) -> Tensor:
        """What each item's entropy should count, `[*]`: 1 / count, or the mean of the sequences' means."""
        weight = torch.ones_like(like) if mask is None else mask.to(like.dtype).expand(like.shape)
        if self.denominator is not None:
            return weight / self.denominator
        if self.sequences and like.ndim > 1:
            length = weight.flatten(1).sum(1)
            each = weight / length.clamp(min=1e-12).view(-1, *[1] * (like.ndim - 1))
            return each / (length > 0).sum()
        return weight / weight.sum()


@dataclass(frozen=True)
class Probe:
    """A loss, the batch that it is called with, and where to look: `leaf [*, K]` in the dtype of the examination, `given` as the user's tensors are."""

    loss: Callable[..., Tensor]
    batch: Mapping[str, Any]  # without the policy's own outputs
    head: Head
    contract: Contract
    leaf: Tensor
    given: torch.dtype
    flags: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def mask(self) -> Tensor | None:
        mask: Tensor | None = self.batch.get("mask")
        return mask

    @property
    def weights(self) -> Tensor:
        return self.contract.weights(self.leaf[..., 0], self.mask)

    def call(self, leaf: Tensor, coef: float, *, kl: float = 0.0, draw: int = 0, **changed: Any) -> Slope:
        """The loss and its gradient at this leaf; `draw` names the stream of random numbers that it may use."""
        leaf = leaf.detach().requires_grad_()
        arguments = {**self.batch, **changed}
        if leaf.dtype == self.leaf.dtype:  # else the dtypes are the user's own
            arguments = {name: _cast(value, leaf.dtype) for name, value in arguments.items()}
        names: dict[str, float] = {} if self.contract.coef is None else {"coef": coef}
        if self.contract.kl_coef is not None:
            names["kl_coef"] = kl
        with _random_numbers(self.seed + draw, leaf), torch.enable_grad():
            value = self.loss(**{**arguments, **self.head.arguments(leaf), **self.flags, **names})
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
                got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"loss: returned {got}; legal is one floating number as a tensor, the loss to be minimised")
            value = value.reshape(())
            grad = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
        return Slope(value.detach().double(), torch.zeros_like(leaf) if grad is None else grad)

    def term(self, leaf: Tensor, *, times: float = 1.0, draw: int = 0, **changed: Any) -> Slope:
        """The entropy term at `times` the coefficient, a unit of coefficient."""
        coef = self.contract.coef
        if coef is None:
            return self.call(leaf, 1.0, draw=draw, **changed)
        return self.call(leaf, times * coef, draw=draw, **changed).minus(self.call(leaf, 0.0, draw=draw, **changed), times * coef)

    def kl_term(self, leaf: Tensor, *, draw: int = 0, **changed: Any) -> Slope:
        coef = self.contract.kl_coef
        assert coef is not None
        return self.call(leaf, 0.0, kl=coef, draw=draw, **changed).minus(self.call(leaf, 0.0, draw=draw, **changed), coef)

    def exact(self, leaf: Tensor, entropy: Callable[[Tensor], Tensor] | None = None) -> Slope:
        """The sum of the items' entropies and its gradient; row i of it is the gradient of item i's."""
        leaf = leaf.detach().requires_grad_()
        with torch.enable_grad():
            value = (self.head.entropy if entropy is None else entropy)(leaf).sum()
            (grad,) = torch.autograd.grad(value, leaf)
        return Slope(value.detach(), grad)

    def wanted(self, leaf: Tensor) -> float:
        """The value that the term should have at this leaf: minus the weighted entropy (plus, where entropy should fall)."""
        weights = self.weights
        return -self.contract.sign * float(torch.where(weights != 0, self.head.entropy(leaf), 0).mul(weights).sum())

    def actions_at(self, leaf: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """What the batch holds about actions, for these ones: a policy that is on its own samples."""
        changed = {"actions": actions.to(self.batch["actions"].dtype)}
        if "old_log_prob" in self.batch:
            changed["old_log_prob"] = self.head.log_prob(leaf, actions).detach()
        if "reference_log_prob" in self.batch and self.contract.reference is not None:
            changed["reference_log_prob"] = self.head.log_prob(self.contract.reference.to(leaf), actions).detach()
        return changed

    def rows(self, rows: Tensor) -> Probe:
        """The same for some rows of the batch."""
        taken = {name: value[rows] if isinstance(value, Tensor) and value.ndim else value for name, value in self.batch.items()}
        support = getattr(self.head, "support", None)
        head = replace(self.head, support=support[rows]) if support is not None else self.head
        reference = self.contract.reference
        contract = replace(self.contract, reference=None if reference is None else reference[rows])
        return replace(self, batch=taken, head=head, contract=contract, leaf=self.leaf[rows])


@contextmanager
def _random_numbers(seed: int, like: Tensor) -> Iterator[None]:
    """This seed inside, the caller's state afterwards. torch.manual_seed also keeps a stack trace for devices that are not there: a third of a call's time."""
    state = torch.default_generator.get_state()
    with torch.random.fork_rng([like.device]) if like.is_cuda else nullcontext():
        try:
            torch.default_generator.manual_seed(seed)
            if like.is_cuda:
                torch.cuda.manual_seed_all(seed)
            yield
        finally:
            torch.default_generator.set_state(state)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def ragged(mask: Tensor, generator: torch.Generator) -> Tensor:
    """A mask that leaves out different numbers of items a row: the given one where it does so itself, else with some of its items taken out."""
    if mask.ndim == 1 or mask.shape[-1] == 1:
        if len(mask) < 3 or not bool(mask.bool().all()):
            return mask
        keep = torch.arange(len(mask)) < math.ceil(0.7 * len(mask))
        return torch.where(keep.to(mask.device).view(-1, *[1] * (mask.ndim - 1)), mask, torch.zeros_like(mask))
    rows = mask.flatten(0, -2)
    lengths = rows.bool().sum(-1)
    if int(lengths.min()) != int(lengths.max()) or len(rows) < 2:
        return mask
    share = torch.linspace(1.0, 0.4, len(rows))[torch.randperm(len(rows), generator=generator)].to(mask.device)
    rank = rows.bool().cumsum(-1)
    keep = rank <= (share * lengths).ceil().unsqueeze(-1)
    return torch.where(keep, rows, torch.zeros_like(rows)).view(mask.shape)
