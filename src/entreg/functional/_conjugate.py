"""The conjugate of minus an entropy on the simplex: `max_p <p, q> + tau Omega(p)`, its maximiser, and exact derivatives of both.

Shapes: `*` batch, `V` classes; row values are `[*, 1]` inside. `x = (q - max q) / tau <= 0`, -inf for a class that does not exist; `p` the maximiser.
No solver is differentiated: the value's gradient is `p` (and `Omega(p)` to tau), and p's is the inverse of the KKT system, in closed form

    dp/dx = diag(s) - s s^T / sum s                        Shannon, Tsallis: s = p^(2-q) / q on the support of p
    dp/dx = diag(s) - p p^T - (s-p)(s-p)^T / (sum s - 1)   Rényi: s = p^(2-a) sum(p^a) / a
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from entreg.functional._softmax import _check, _wide, in_front
from entreg.functional.categorical import categorical_entropy_from_probs
from entreg.functional.families import SHANNON, Family, renyi, tsallis

Kind = tuple[str, float]  # name and order: a Family would be taken apart by torch.func
ROUNDS = 100  # of the root search; 4 to 9 are taken, and where Newton leaves the bracket it is halved


def kind_of(family: Family) -> Kind:
    """The kind of a family that has a soft value; ValueError with the reason for one that has none."""
    name, order = family.name, family.order
    if order == 1:
        return "shannon", 1.0
    if order == 0:
        raise ValueError(f"family: got {name} at order 0, legal is an order > 0: it counts the support, so the best policy is a limit that is never reached")
    if name == "tsallis" or (name == "renyi" and order < 1):
        return name, order
    raise ValueError(f"family: got {name} at order {order}, legal are shannon, tsallis and renyi below 1: this one is not concave and has no soft value")


def _omega(p: Tensor, name: str, order: float) -> Tensor:
    family = SHANNON if name == "shannon" else tsallis(order) if name == "tsallis" else renyi(order)
    return categorical_entropy_from_probs(p, family).unsqueeze(-1)


def _root(function: Callable[[Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor) -> Tensor:
    """Where an increasing function `y -> (value, slope)` crosses 0 in [low, high]: Newton while it stays inside and its steps halve, else bisection."""
    y, moved = high, high - low
    for _ in range(ROUNDS):
        value, slope = function(y)
        low, high = torch.where(value <= 0, y, low), torch.where(value >= 0, y, high)
        newton, small = y - value / slope, 1e-15 * (1 + y.abs())
        sound = (newton >= low) & (newton <= high) & ((newton - y).abs() <= (moved / 2).maximum(small))
        following = torch.where(sound, newton, (low + high) / 2)
        moved, y = (following - y).abs(), following
        if bool((moved <= small).all()):
            break
    return y


def _sparsemax(x: Tensor) -> Tensor:
    z = (x / 2).clamp(min=-2)  # nothing more than 1 below the maximum is in the support
    ordered = z.sort(dim=-1, descending=True).values
    total = ordered.cumsum(-1) - 1
    rank = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    size = (rank * ordered > total).sum(-1, keepdim=True).clamp(min=1)  # a row without a class is NaN and has none
    return (z - total.gather(-1, size - 1) / size).clamp(min=0)


def _entmax(x: Tensor, order: float) -> Tensor:
    """Tsallis: `p_i = P (1 - (q-1) g_i / (q P^(q-1)))_+^(1/(q-1))`, g = -x the gap to the best class and P its probability, found so that they sum to 1."""
    e, gap = order - 1, -x

    def logs(y: Tensor) -> tuple[Tensor, Tensor]:
        z = (e / order) * gap * (-e * y).clamp(max=700).exp()
        return y + torch.log1p(-z.clamp(max=1)) / e, z

    def excess(y: Tensor) -> tuple[Tensor, Tensor]:
        log_p, z = logs(y)
        slope = (log_p.softmax(-1) / (1 - z).clamp(min=1e-300)).sum(-1, keepdim=True)
        return log_p.logsumexp(-1, keepdim=True), slope

    top = torch.zeros_like(x[..., :1])
    return logs(_root(excess, top - math.log(x.shape[-1]), top))[0].softmax(-1)


def _renyi_policy(x: Tensor, order: float) -> Tensor:
    """Rényi below 1: `p_i ~ u_i^(-1/(1-a))` with `u_i = lambda - x_i > 0` and `E_p u = a / (1-a)`; solved for `log(u_min (1-a) / a)` in [-log V, 0]."""
    rest, gap = 1 - order, -x

    def level(y: Tensor) -> Tensor:
        return torch.log1p((rest / order) * gap * (-y).exp())  # log(u_i / u_min)

    def excess(y: Tensor) -> tuple[Tensor, Tensor]:
        logs = level(y)
        share = -torch.expm1(-logs)
        up, down = -logs * (order / rest), -logs / rest
        slope = 1 + (share * (up.softmax(-1) * order - down.softmax(-1))).sum(-1, keepdim=True) / rest
        return y + up.logsumexp(-1, keepdim=True) - down.logsumexp(-1, keepdim=True), slope

    top = torch.zeros_like(x[..., :1])
    return (-level(_root(excess, top - math.log(x.shape[-1]), top)) / rest).softmax(-1)


def _maximiser(x: Tensor, name: str, order: float) -> Tensor:
    if name == "shannon":
        return x.softmax(-1)
    if name == "tsallis" and order == 2:
        return _sparsemax(x)
    return (_renyi_policy if name == "renyi" else _entmax)(_wide(x), order)


def _pulled(p: Tensor, grad: Tensor, name: str, order: float) -> Tensor:
    """`(dp/dx) grad`, both symmetric: what a gradient at p is at x."""
    inside = torch.where(p > 0, p, 1)
    s = torch.where(p > 0, p if order == 1 else inside ** (2 - order) / order, 0)
    if name != "renyi":
        return s * (grad - (s * grad).sum(-1, keepdim=True) / s.sum(-1, keepdim=True))
    s = s * torch.where(p > 0, inside**order, 0).sum(-1, keepdim=True)
    mean, rest = (p * grad).sum(-1, keepdim=True), s - p
    return s * grad - p * mean - rest * ((rest * grad).sum(-1, keepdim=True) / rest.sum(-1, keepdim=True))


def _scaled(q: Tensor, support: Tensor | None, tau: Tensor) -> tuple[Tensor, Tensor]:
    """`max q [*, 1]`, without gradient, and `x [*, V]`."""
    z = q if support is None else torch.where(support, q, -math.inf)
    top = z.detach().amax(-1, keepdim=True)
    return top, (z - top) / tau


class Conjugate(torch.autograd.Function):
    """`(q [*, V], support [*, V] | None, tau [*, 1], name, order) -> (value [*], p [*, V])`, differentiable any number of times in q and tau."""

    @staticmethod
    def forward(q: Tensor, support: Tensor | None, tau: Tensor, name: str, order: float) -> tuple[Tensor, Tensor]:
        top, x = _scaled(q, support, tau)
        p = _maximiser(x, name, order)
        if name == "shannon":
            scaled = x.logsumexp(-1, keepdim=True)
        else:  # errors of p are of second order in it
            live = torch.where(torch.isnan(p), 1.0, p)  # of a row without a class, which is told below
            scaled = (p * torch.where(p > 0, x, 0)).sum(-1, keepdim=True) + _omega(live, name, order)
        value = (top + tau * scaled.to(q.dtype)).squeeze(-1)
        _check(q, support, value, "q")
        return value, p.to(q.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, support, tau, *ctx.kind = inputs
        ctx.save_for_backward(q, support, tau, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, grad_p: Tensor | None) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        q, support, tau, p = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: what was saved is constant
            p = Conjugate.apply(q, support, tau, *ctx.kind)[1]  # type: ignore[no-untyped-call]
        grad_q, grad_tau = None, None
        if grad_value is not None:
            grad_q = p * grad_value.unsqueeze(-1)
            grad_tau = _omega(p, *ctx.kind) * grad_value.unsqueeze(-1) if ctx.needs_input_grad[2] else None
        if grad_p is not None:
            pulled = _pulled(p, grad_p, *ctx.kind) / tau
            grad_q = pulled if grad_q is None else grad_q + pulled
            if ctx.needs_input_grad[2]:
                top = _scaled(q, support, tau)[0]
                x = (torch.where(p > 0, q, top) - top) / tau  # without the -inf, whose derivative to tau is NaN
                part = -(pulled * x).sum(-1, keepdim=True)
                grad_tau = part if grad_tau is None else grad_tau + part
        return grad_q, None, grad_tau, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        *tensors, name, order = args
        return Conjugate.apply(*in_front(info, in_dims, tensors), name, order), (0, 0)  # type: ignore[no-untyped-call]
