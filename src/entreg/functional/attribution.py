"""Why a policy's entropy falls: which items of a batch drive it, and by how much a step will change it, to first order.

Shapes: `*` items (tokens, actions), `V` classes. For logits z with p = softmax(z), l = log p: dH/dz = -p (l + H), so any small change dz of the logits
changes the entropy by `-Cov_p(l, dz)`. A policy gradient on one item of advantage A and class y moves its logits by A (e_y - p) a unit of step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def _log_softmax(logits: Tensor, support: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p with 0 where a class does not exist, and p."""
    live = torch.isfinite(logits) if support is None else support & torch.isfinite(logits)
    log_p = torch.where(live, logits, -torch.inf).log_softmax(-1)
    p = log_p.exp()
    return torch.where(live, log_p, 0.0), p


def entropy_change(
    logits: Float[Tensor, "*batch V"], change: Float[Tensor, "*batch V"], *, support: Bool[Tensor, "*batch V"] | None = None
) -> Float[Tensor, "*batch"]:
    """The first-order change of the Shannon entropy, nats, when logits change by `change`, `(*, V), (*, V) -> (*)`.

    `-Cov_p(log p, change) = -sum_v p_v (log p_v + H) change_v`. A constant shift changes nothing.

    >>> logits = torch.tensor([2.0, 0.0])
    >>> round(float(entropy_change(logits, torch.tensor([0.01, 0.0]))), 5)           # the likelier class gains: entropy falls
    -0.0021

    Source: Cui et al. 2025 (arXiv:2505.22617), lemma 1, there for one step of the policy gradient.
    """
    log_p, p = _log_softmax(logits, support)
    moved = torch.where(p > 0, change, 0.0)
    mean = (p * log_p).sum(-1, keepdim=True)
    return -(p * (log_p - mean) * moved).sum(-1)


def entropy_drift(
    logits: Float[Tensor, "*batch V"],
    index: Int[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    *,
    support: Bool[Tensor, "*batch V"] | None = None,
) -> Float[Tensor, "*batch"]:
    """How fast each item's own policy-gradient step changes the entropy where it was drawn, nats a unit of step, `(*, V), (*), (*) -> (*)`.

    `entropy_change(logits, A (e_y - p)) = -A [p_y (log p_y + H) - sum_v p_v^2 (log p_v + H)]`: negative where a likely class earned more than expected, or an
    unlikely one less. Exact for tabular softmax policies; networks share parameters between items, so that it tells who drives, not how far.

    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    >>> drift = entropy_drift(logits, torch.tensor([0, 1]), torch.tensor([1.0, 1.0]))
    >>> [round(value, 3) for value in drift.tolist()]                                 # the likely class pulls entropy down, the other up
    [-0.05, 0.37]
    """
    log_p, p = _log_softmax(logits, support)
    centred = log_p - (p * log_p).sum(-1, keepdim=True)
    slope = p * centred
    taken = slope.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return -advantage * (taken - (p * slope).sum(-1))


def advantage_covariance(
    log_prob: Float[Tensor, "*batch"], advantage: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch"]:
    """Each item's part of Cov(advantage, log-prob), `(*), (*) -> (*)`: `(log p_i - mean)(A_i - mean)`, 0 outside the mask.

    The mean over the mask is the covariance.

    Positive: likely actions earn more than expected, and the policy gradient lowers entropy at about this rate.

    >>> advantage_covariance(torch.tensor([-0.1, -3.0]), torch.tensor([1.0, -1.0]))
    tensor([1.4500, 1.4500])

    Source: Cui et al. 2025 (arXiv:2505.22617), section 4: Clip-Cov and KL-Cov select by it.
    """
    keep = torch.ones_like(log_prob, dtype=torch.bool) if mask is None else mask
    count = keep.sum().clamp(min=1)
    parts = [torch.where(keep, value, 0.0) for value in (log_prob, advantage)]
    centred = [torch.where(keep, value - value.sum() / count, 0.0) for value in parts]
    return centred[0] * centred[1]


class Driver(NamedTuple):
    """One group of items (an action, a token, a prompt): its share of the sum over all items, and how many items it has."""

    group: int
    total: float
    items: int


def entropy_drivers(
    values: Float[Tensor, "*batch"], groups: Int[Tensor, "*batch"], *, count: int = 5, mask: Bool[Tensor, "*batch"] | None = None
) -> list[Driver]:
    """The `count` groups whose items sum to the least (drift: those that pull entropy down most), the strongest first.

    >>> entropy_drivers(torch.tensor([-0.5, 0.2, -0.1]), torch.tensor([7, 7, 3]), count=1)
    [Driver(group=7, total=-0.30000001192092896, items=2)]
    """
    keep = torch.ones_like(groups, dtype=torch.bool) if mask is None else mask
    found, place = groups[keep].unique(return_inverse=True)
    totals = torch.zeros(len(found), dtype=values.dtype, device=values.device).index_add_(0, place, values[keep].detach())
    sizes = torch.bincount(place, minlength=len(found))
    order = totals.argsort()[:count]
    return [Driver(int(found[at]), float(totals[at]), int(sizes[at])) for at in order.tolist()]
