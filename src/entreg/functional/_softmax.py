"""Rényi entropy and log-probability of `softmax(z)`: analytic forward and backward in one pass over the classes.

Shapes: `*` batch, `V` classes; row values are kept as `[*, 1]` inside. `z` logits, `m` their maximum, `y = z - m <= 0`, `w = exp(y)`, `s = sum w`,
`p = w / s`, `a` the order, `e = a - 1`. The formulas (`_scan`, `_renyi`) are plain differentiable torch: the forward runs them on constants, and only a
backward that is itself differentiated runs them again with a graph. Manual passes, not `softmax` and `log_softmax`: those take 163 and 112 microseconds on
[2048, 4] where maximum, subtraction, exponential and sum take 35 (their kernels vectorise along V).
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

FLOOR = -1e4  # y of a class of probability exactly 0, in float64 too: turns 0 * -inf into 0 where a product needs it, and changes no other digit
NEAR_ONE = (0.5, 1.6)  # orders at which sum p^a is taken as 1 + something small: the escort form loses a factor 1/|e|, this one digits of large entropies
Function = TypeVar("Function", bound=Callable[..., Any])


def _scan(logits: Tensor, support: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`y [*, V]` (-inf outside the support), `w [*, V]`, `s [*, 1]`, `log s [*, 1]`."""
    z = logits if support is None else torch.where(support, logits, -math.inf)
    y = z - z.detach().amax(-1, keepdim=True)
    w = y.exp()
    s = w.sum(-1, keepdim=True)
    return y, w, s, s.log()


def _wide(row: Tensor) -> Tensor:
    """Row values in float64: the rounding of log s (5e-7 at V = 50k) is divided by e, and exponentiated by Tsallis. (Apple's devices have no float64.)"""
    return row.float() if row.device.type == "mps" else row.double()


def _renyi(y: Tensor, w: Tensor, s: Tensor, log_s: Tensor, order: float) -> tuple[Tensor, Tensor, Tensor]:
    """`R_a [*, 1]`, `p [*, V]` and `dR_a/dz [*, V]`: `-a p phi(log p + R_a)` near order 1, the difference of p and its escort elsewhere."""
    e, p = order - 1, w / s
    if order == 1:
        y = y.clamp(min=FLOOR)
        mean = (p * y).sum(-1, keepdim=True)
        return log_s - mean, p, p * (mean - y)  # both terms of the entropy are >= 0: no cancellation
    if order == 0:
        count = _wide((y > -math.inf).sum(-1, keepdim=True))
        return count.log() + 0 * s, p, 0 * p  # 0 times them, not zeros: NaN in a row without a class, as everywhere, and a second backward finds a graph
    if math.isinf(order):
        top = (y == 0).to(y.dtype)
        return log_s, p, p - top / top.sum(-1, keepdim=True)
    log_s = _wide(s).log()
    if NEAR_ONE[0] < order < NEAR_ONE[1]:
        y = y.clamp(min=-100 if y.dtype == torch.float32 else -800)  # there w = 0, and expm1(e y) must not be infinite
        renyi = log_s - torch.log1p(_wide((w * torch.expm1(e * y)).sum(-1, keepdim=True)) / _wide(s)) / e
        return renyi, p, p * torch.expm1(e * (y + (renyi - log_s).to(y.dtype))) * (-order / e)
    v = (order * (_wide(y) if order < 1 else y)).exp()  # at small orders Tsallis shows every digit of this sum
    t = v.sum(-1, keepdim=True)
    return log_s + (log_s - _wide(t).log()) / e, p, (p - (v / t).to(p.dtype)) * (order / e)


def _check(logits: Tensor, support: Tensor | None, renyi: Tensor, name: str = "logits") -> None:
    """ValueError where a row has no class left. One sum of B numbers on a CPU (2 microseconds); elsewhere the row is NaN and the device is not made to wait."""
    if type(renyi) is not Tensor or renyi.device.type != "cpu" or torch.compiler.is_compiling() or not math.isnan(renyi.sum().item()):
        return
    dead = logits == -math.inf if support is None else (logits == -math.inf) | ~support
    empty = dead.all(-1).nonzero()
    if len(empty):
        name, row = name if support is None else "support", tuple(empty[0].tolist())
        raise ValueError(f"{name}: row {row} has no class left ({len(empty)} such rows), legal is at least one class a row")


def in_front(info: Any, in_dims: tuple[Any, ...], tensors: list[Any]) -> list[Any]:
    """A vmap rule's tensors with the mapped dimension first: every formula here keeps leading dimensions."""
    return [x if x is None else x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, in_dims, strict=False)]


def _signature_once(forward: Function) -> Function:
    """`Function.apply` asks for the signature at every call: 14 of the 60 microseconds that it adds to a small forward."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


class SoftmaxRenyi(torch.autograd.Function):
    """`(logits [*, V], support [*, V] | None, index [*] | None, order) -> (log p_index [*] | None, R_order [*], then the parts that backward needs)`.

    The entropy is float64 at orders other than 1 and infinity: a family's transform comes before the rounding.
    """

    @staticmethod
    @_signature_once
    def forward(logits: Tensor, support: Tensor | None, index: Tensor | None, order: float) -> tuple[Tensor | None, ...]:
        y, w, s, log_s = _scan(logits, support)
        log_prob = None if index is None else (y.gather(-1, index.unsqueeze(-1)) - log_s).squeeze(-1)
        renyi, p, direction = _renyi(y, w, s, log_s, order)
        _check(logits, support, renyi)
        return log_prob, renyi.squeeze(-1), p, direction

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        logits, support, index, ctx.order = inputs
        ctx.save_for_backward(logits, support, index, *output[2:], output[0])
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_log_prob: Tensor | None, grad_renyi: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        logits, support, index, p, direction, log_prob = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: what was saved is constant, so it is made again from the logits
            p, direction = _renyi(*_scan(logits, support), ctx.order)[1:]
        grad = None
        if grad_renyi is not None:
            grad = direction * grad_renyi.to(p.dtype).unsqueeze(-1)
        if grad_log_prob is not None:
            pulled = grad_log_prob.masked_fill(log_prob == -math.inf, 0).unsqueeze(-1)  # a class that does not exist has no gradient
            grad = -p * pulled if grad is None else torch.addcmul(grad, p, pulled, value=-1)
            grad = grad.scatter_add(-1, index.unsqueeze(-1), pulled)
        return grad, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        *tensors, order = args
        output = SoftmaxRenyi.apply(*in_front(info, in_dims, tensors), order)  # type: ignore[no-untyped-call]
        return output, tuple(None if x is None else 0 for x in output)


def softmax_renyi(logits: Tensor, support: Tensor | None, index: Tensor | None, order: float) -> tuple[Tensor, Tensor]:
    """Log-probability of `index` (None without one) and Rényi entropy at `order`, `[*]` both. An order that float32 cannot hold is its limit, 0 or infinity."""
    order = 0.0 if order < 1e-37 else math.inf if order > 1e37 else order
    output = SoftmaxRenyi.apply(logits, support, index, order)  # type: ignore[no-untyped-call]
    return output[0], output[1]
