"""Rényi divergence of two softmaxes, KL included: value and analytic gradients with respect to both logits.

Shapes: `*` batch, `V` classes. `p`, `q` the distributions, `a` the order, `e = a - 1`, `r = log p - log q`, `x = log(p^a q^(1-a))`, `g = softmax(x)` the
geometric mixture. Nothing is saved but the logits: the backward makes its parts again in plain torch, and so can itself be differentiated.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entreg.functional._softmax import FLOOR, NEAR_ONE, _scan, _wide, in_front


class _Pair(NamedTuple):
    log_p: Tensor  # [*, V], FLOOR where p = 0
    log_q: Tensor
    no_p: Tensor  # [*, V] bool, p = 0 because the class is absent
    no_q: Tensor
    x: Tensor  # [*, V], -inf where the mixture has no mass

    @classmethod
    def of(cls, logits_p: Tensor, logits_q: Tensor, support: Tensor | None, order: float) -> "_Pair":
        logs = []
        for logits in (logits_p, logits_q):
            y, _, _, log_s = _scan(logits, support)
            logs.append((y - log_s).clamp(min=FLOOR))
        (log_p, no_p), (log_q, no_q) = ((log, log <= FLOOR) for log in logs)
        weight = 1.0 if math.isinf(order) else order
        x = (weight * log_p + (1 - weight) * log_q).masked_fill(no_p | no_q if order < 1 else no_p, -math.inf)
        return cls(log_p, log_q, no_p, no_q, x)


def _value(pair: _Pair, order: float) -> Tensor:
    """`D_a(p || q)  [*, 1]`."""
    log_p, log_q, no_p, no_q, x = pair
    p, r, e = log_p.exp(), log_p - log_q, order - 1
    if order == 1:  # every term >= 0: the plain sum of p r cancels down to rounding noise where p ~ q
        q = log_q.exp()
        small = r.abs() <= 1
        value = torch.where(small, p * (torch.expm1(torch.where(small, -r, 0)) + r), q - p + p * r).masked_fill(no_p & no_q, 0).sum(-1, keepdim=True)
    elif math.isinf(order):
        value = r.masked_fill(no_p, -math.inf).amax(-1, keepdim=True)
    else:
        small = (e * r).abs() <= 1
        term = torch.where(small, p * torch.expm1(torch.where(small, e * r, 0)), x.exp() - p)
        near = _wide(term.masked_fill(x == -math.inf, 0).sum(-1, keepdim=True) - p.masked_fill(x > -math.inf, 0).sum(-1, keepdim=True))
        far = _wide(x).logsumexp(-1, keepdim=True)
        value = (torch.where(far.abs() < 0.5, torch.log1p(near), far) / e).to(p.dtype)
    return value.masked_fill((no_q & ~no_p).any(-1, keepdim=True), math.inf) if order >= 1 else value


class SoftmaxDivergence(torch.autograd.Function):
    """`(logits_p [*, V], logits_q [*, V], support [*, V] | None, order) -> D_order(p || q) [*]`."""

    @staticmethod
    def forward(logits_p: Tensor, logits_q: Tensor, support: Tensor | None, order: float) -> Tensor:
        return _value(_Pair.of(logits_p, logits_q, support, order), order).squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.order = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """`dD/dz_p = a/e (g - p)`, near order 1 as `a p phi(r - D)`; `dD/dz_q = q - g`."""
        order, e = ctx.order, ctx.order - 1
        logits_p, logits_q, support = ctx.saved_tensors
        pair = _Pair.of(logits_p, logits_q, support, order)
        p, q, r = pair.log_p.exp(), pair.log_q.exp(), pair.log_p - pair.log_q
        if math.isinf(order):
            top = (r.masked_fill(pair.no_p, -math.inf) == r.masked_fill(pair.no_p, -math.inf).amax(-1, keepdim=True)).to(p.dtype)
            mixture = top / top.sum(-1, keepdim=True)
        else:
            mixture = pair.x.softmax(-1)
        if order == 1:
            to_p = p * (r - (p * r).sum(-1, keepdim=True))
        elif NEAR_ONE[0] < order < NEAR_ONE[1]:
            centred = e * (r - _value(pair, order))
            small = centred.abs() <= 1
            to_p = torch.where(small, p * torch.expm1(torch.where(small, centred, 0)), mixture - p) * (order / e)
        else:
            to_p = (mixture - p) * (1.0 if math.isinf(order) else order / e)
        grad = grad.unsqueeze(-1)
        return grad * to_p, grad * (q - mixture), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        *tensors, order = args
        divergence = SoftmaxDivergence.apply(*in_front(info, in_dims, tensors), order)  # type: ignore[no-untyped-call]
        return divergence, 0


def softmax_divergence(logits_p: Tensor, logits_q: Tensor, support: Tensor | None, order: float) -> Tensor:
    """`D_order(p || q)`, `[*]`. An order that float32 cannot hold is its limit, 0 or infinity."""
    order = 0.0 if order < 1e-37 else math.inf if order > 1e37 else order
    divergence: Tensor = SoftmaxDivergence.apply(logits_p, logits_q, support, order)  # type: ignore[no-untyped-call]
    return divergence
