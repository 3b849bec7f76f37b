"""Arithmetic of one row a token, the same for all backends: joining partial sums, statistics from sums, gradients as a few numbers a row.

Shapes: `N` tokens, `V` classes, `k` partial results to be joined. `z` are logits after soft-cap and mask, before the temperature; `m` their maximum,
`scale = 1/temperature`, `y = (z - m) scale <= 0` (subtracted first: an offset of 1e4 would otherwise cost the digits of z), `w = exp(y)`, `a` the order,
`e = a - 1`. Rows are float64.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = -1e4  # y of a class of probability exactly 0: turns 0 * -inf into 0
NEAR_ONE = (0.5, 1.6)  # orders at which sum p^a is taken as 1 + something small


class Spec(NamedTuple):
    """What is computed; the log-sum-exp always is. `order` is that of the Rényi entropy, None where it is not asked for (untruncated order 1 is `shannon`)."""

    order: float | None = None
    shannon: bool = False
    varentropy: bool = False
    collision: bool = False
    softcap: float | None = None


class Cut(NamedTuple):
    """A truncated set: logits above `value`, and those equal to it up to class number `last`; [N] each."""

    value: Tensor
    last: Tensor


class Operands(NamedTuple):
    """What a kernel reads."""

    logits: Tensor  # [N, V], float16 to float64, any strides
    scale: Tensor  # [N], 1 / temperature
    support: Tensor | None = None  # [N, V] or [1, V] bool, True where the class exists
    cut: Cut | None = None  # the set of the Rényi entropy; the other statistics are those of all classes


class Parts(NamedTuple):
    """Sums of parts of a row relative to the part's own maximum, [N, k]; None where not asked for."""

    m: Tensor
    rest: Tensor  # sum of w below the maximum: log s = log1p(rest + ties - 1) keeps the digits of low entropies
    ties: Tensor  # classes at the maximum
    t: Tensor | None = None  # sum w y
    u: Tensor | None = None  # sum w y^2
    q: Tensor | None = None  # sum w^2
    kept_rest: Tensor | None = None  # as `rest`, over the cut set
    kept_ties: Tensor | None = None
    kept: Tensor | None = None  # order 1: sum w y; near 1: sum w expm1(e y); 0: how many; others: sum exp(a y); over the cut set
    picked: Tensor | None = None  # z of the target, -inf where it does not exist here


class Rows(NamedTuple):
    """Statistics, [N]; None where not asked for."""

    log_prob: Tensor | None
    shannon: Tensor | None
    varentropy: Tensor | None
    collision: Tensor | None
    renyi: Tensor | None
    lse: Tensor | None


class Slopes(NamedTuple):
    """What the gradient kernel needs of a row, [N, 1, 1] in the precision of the kernel; None where a term is absent."""

    m: Tensor
    log_s: Tensor
    A: Tensor
    B: Tensor | None
    C: Tensor | None
    D: Tensor | None
    E: Tensor | None
    F: Tensor | None
    G: Tensor | None


def compute_dtype(logits: Tensor) -> torch.dtype:
    """float32, float64 for float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def wide(rows: Tensor) -> Tensor:
    """Rows in float64 (Apple's devices have none)."""
    return rows.float() if rows.device.type == "mps" else rows.double()


def near_one(order: float) -> bool:
    return NEAR_ONE[0] < order < NEAR_ONE[1]


def kind(order: float | None) -> str:
    """How the order's sum is taken, by name: outside of what is compiled, where an order is a number that may change."""
    if order is None:
        return "none"
    return "infinite" if math.isinf(order) else "zero" if order == 0 else "one" if order == 1 else "near one" if near_one(order) else "far"


def merge(parts: Parts, spec: Spec, scale: Tensor) -> Parts:
    """One part of `k`: `[N, k] -> [N, 1]`. Associative, so blocks, shards and ranks may be joined in any grouping."""
    m, rest, ties, t, u, q, kept_rest, kept_ties, kept, picked = (None if part is None else wide(part) for part in parts)
    assert m is not None and rest is not None and ties is not None
    top = m.amax(-1, keepdim=True)
    d = ((m - top) * wide(scale).unsqueeze(-1)).clamp(min=-700 if m.dtype == torch.float64 else -80)  # exp(.) is 0, and products with it stay finite
    x, s, level = d.exp(), rest + ties, d == 0

    def total(part: Tensor) -> Tensor:
        return part.sum(-1, keepdim=True)

    def apart(rest: Tensor, ties: Tensor) -> tuple[Tensor, Tensor]:
        return total(x * rest + torch.where(level, 0, x * ties)), total(torch.where(level, ties, 0))

    rest, ties = apart(rest, ties)
    if u is not None:
        assert t is not None
        u = total(x * (u + d * (2 * t + d * s)))
    kept_s = s if kept_rest is None or kept_ties is None else kept_rest + kept_ties
    if kept_rest is not None and kept_ties is not None:
        kept_rest, kept_ties = apart(kept_rest, kept_ties)
    if kept is not None:
        assert spec.order is not None
        kept = total(_moved(kept, kept_s, d, x, spec.order))
    t = None if t is None else total(x * (t + d * s))
    q = None if q is None else total(x * x * q)
    return Parts(top, rest, ties, t, u, q, kept_rest, kept_ties, kept, None if picked is None else picked.amax(-1, keepdim=True))


def _moved(kept: Tensor, s: Tensor, d: Tensor, x: Tensor, order: float) -> Tensor:
    """The order's sum of a part, relative to a maximum that is higher by -d."""
    if order == 0:
        return kept
    if order == 1:
        return x * (kept + d * s)
    if near_one(order):
        return (order * d).exp() * kept + s * x * torch.expm1((order - 1) * d)
    return (order * d).exp() * kept


def log_sum(rest: Tensor, ties: Tensor) -> Tensor:
    """`log s`; NaN in a row without a class."""
    return torch.where(ties > 0, torch.log1p(rest + (ties - 1)), math.nan)


def finish(parts: Parts, spec: Spec, scale: Tensor) -> Rows:
    """Statistics of merged sums, `[N, 1] -> [N]`, float64."""
    m, rest, ties, t, u, q, kept_rest, kept_ties, kept, picked = (None if part is None else part.squeeze(-1) for part in parts)
    assert m is not None and rest is not None and ties is not None
    s, log_s = rest + ties, log_sum(rest, ties)
    renyi = None
    if spec.order is not None:
        inside, outside = (s, log_s) if kept_rest is None or kept_ties is None else (kept_rest + kept_ties, log_sum(kept_rest, kept_ties))
        renyi = _renyi(inside, outside, kept, spec.order)
    mean = None if t is None else t / s
    return Rows(
        log_prob=None if picked is None else (picked - m) * wide(scale) - log_s,
        shannon=log_s - mean if spec.shannon and mean is not None else None,
        varentropy=u / s - mean * mean if u is not None and mean is not None else None,
        collision=None if q is None else q / (s * s),
        renyi=renyi,
        lse=m * wide(scale) + log_s,
    )


def _renyi(s: Tensor, log_s: Tensor, kept: Tensor | None, order: float) -> Tensor:
    if math.isinf(order):
        return log_s
    assert kept is not None
    e = order - 1
    if order == 0:
        return kept.log() + 0 * log_s
    if order == 1:
        return log_s - kept / s
    return log_s - torch.log1p(kept / s) / e if near_one(order) else log_s + (log_s - kept.log()) / e


def slopes(parts: Parts, rows: Rows, grads: Rows, spec: Spec, dtype: torch.dtype, ignored: Tensor | None) -> Slopes:
    """The derivative of `sum(grads * rows)` as a formula in l with constants of the row; 0 in ignored rows."""
    m, rest, ties = (part.squeeze(-1) for part in parts[:3])
    log_s = log_sum(rest, ties)
    A, B, C, D = torch.zeros_like(log_s), None, None, None
    if grads.log_prob is not None:
        A = A - grads.log_prob
    if grads.lse is not None:
        A = A + grads.lse
    if grads.shannon is not None:
        assert rows.shannon is not None
        A, B = A - grads.shannon * rows.shannon, -grads.shannon
    if grads.varentropy is not None:
        assert rows.varentropy is not None and parts.t is not None
        entropy = log_s - parts.t.squeeze(-1) / (rest + ties)
        A = A + grads.varentropy * (entropy * (entropy + 2) - rows.varentropy)
        B, C = (0 if B is None else B) + 2 * grads.varentropy * (entropy + 1), grads.varentropy
    if grads.collision is not None:
        assert rows.collision is not None
        A, D = A - 2 * grads.collision * rows.collision, 2 * grads.collision
    E, F, G = (None, None, None) if grads.renyi is None or rows.renyi is None else _order_slopes(parts, rows.renyi, grads.renyi, spec, log_s)

    def kernel(row: Tensor | None, name: str) -> Tensor | None:
        if row is None:
            return None
        row = row if ignored is None or name == "m" else torch.where(ignored, 0, row)
        return row.to(dtype)[:, None, None]

    return Slopes(*(kernel(row, name) for row, name in zip((m, log_s, A, B, C, D, E, F, G), Slopes._fields, strict=True)))  # type: ignore[arg-type]


def _order_slopes(parts: Parts, renyi: Tensor, grad: Tensor, spec: Spec, log_s: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    order, ties = spec.order, parts.ties.squeeze(-1)
    assert order is not None
    shift = torch.zeros_like(log_s)  # log p of the cut set minus log p of all classes
    if parts.kept_rest is not None and parts.kept_ties is not None:
        ties = parts.kept_ties.squeeze(-1)
        shift = log_s - log_sum(parts.kept_rest.squeeze(-1), ties)
    e, ratio = order - 1, shift.exp()
    if order == 0:
        return None, None, None
    if math.isinf(order):
        return ratio * grad, grad / ties, None
    if order == 1:
        return -grad * ratio * (shift + renyi), -grad * ratio, None
    if near_one(order):
        return shift + renyi, -order / e * grad * ratio, None
    return order / e * grad * ratio, order / e * grad, order * shift + e * renyi


def capped(x: Tensor, softcap: float | None) -> Tensor:
    """`c tanh(x / c)`; a class that does not exist stays so."""
    return x if softcap is None else torch.where(x == -math.inf, x, softcap * torch.tanh(x / softcap))


def target_slope(logit: Tensor, pull: Tensor, scale: Tensor, softcap: float | None) -> Tensor:
    """What the target's own entry gets of the log-probability: `pull dz/dx`, [N]; 0 where there is no pull."""
    chain = scale if softcap is None else scale * (1 - torch.tanh(logit / softcap) ** 2)
    return torch.where(pull == 0, 0, pull * chain)
