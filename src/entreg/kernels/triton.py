"""The backend for GPUs: sums and gradient as two Triton kernels, each one pass over the logits.

Shapes: `N` rows (tokens), `V` classes. One program owns one row and walks through it in blocks of columns, so that nothing is added atomically and every run
gives the same bits; rows begin at int64 offsets. Arithmetic is float32. A row's blocks are joined as `rows.merge` joins parts, with the row's numbers as
scalars. Both kernels are custom operators, which `torch.compile(fullgraph=True)` takes as they are.
"""

import math
import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from entreg.kernels.rows import FLOOR, Operands, Parts, Slopes, Spec, kind

ORDERS = ("one", "near one", "far", "infinite", "zero", "none")  # `rows.kind` by the number that the kernels know
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BLOCK = 8192  # columns at a time, 16 warps of 16 numbers a thread


@triton.jit
def _expm1(x):  # type: ignore[no-untyped-def]
    """exp(x) - 1; for |x| <= 1 by its series, whose first term left out is 3e-8."""
    small = tl.minimum(tl.maximum(x, -1.0), 1.0)
    series = 1.0 + small / 11.0
    for k in tl.static_range(10, 1, -1):
        series = 1.0 + small * series / k
    return tl.where(tl.abs(x) <= 1, small * series, tl.exp(x) - 1)


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    low = _expm1(-2 * tl.abs(x))  # in (-1, 0]
    return tl.where(x < 0, low, -low) / (low + 2)


@triton.jit
def _read(logits, support, columns, V, softcap, CAPPED: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits of a block before and after the soft-cap, -inf where a class does not exist."""
    there = columns < V
    if MASKED:
        there = there & (tl.load(support + columns, mask=there, other=0) != 0)
    x = tl.load(logits + columns, mask=there, other=-float("inf")).to(tl.float32)
    if CAPPED:
        return x, tl.where(x == -float("inf"), x, softcap * _tanh(x / softcap))
    return x, x


@triton.jit
def _inside(x, columns, value, last):  # type: ignore[no-untyped-def]
    return (x > value) | ((x == value) & (columns <= last))


@triton.jit
def _sums_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0915  one pass is one kernel
    logits, row_stride, scales, support, support_stride, values, lasts, out, out_stride, V, softcap, order,
    ORDER: tl.constexpr, MEAN: tl.constexpr, SQUARE: tl.constexpr, COLLISION: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr, CUT: tl.constexpr,
    FLOOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    support += row * support_stride
    scale = tl.load(scales + row)
    value = tl.load(values + row) if CUT else 0.0
    last = tl.load(lasts + row) if CUT else 0
    e = order - 1
    zero = tl.full((), 0.0, tl.float32)
    m, rest, ties, t, u, q = zero - 3e38, zero, zero, zero, zero, zero
    kept_rest, kept_ties, kept = zero, zero, zero
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x, z = _read(logits, support, columns, V, softcap, CAPPED, MASKED)
        top = tl.maximum(m, tl.max(z, 0))
        y = (z - top) * scale
        w = tl.exp(y)
        level = y == 0
        low = tl.where(level, 0.0, w)
        finite = tl.maximum(y, FLOOR)
        d = tl.maximum((m - top) * scale, -80.0)  # exp(.) is 0 then, and products with it stay finite
        shrink = tl.exp(d)
        moved = d < 0
        s = rest + ties
        if MEAN:
            if SQUARE:
                u = shrink * (u + d * (2 * t + d * s)) + tl.sum(w * finite * finite, 0)
            t = shrink * (t + d * s) + tl.sum(w * finite, 0)
        if COLLISION:
            q = shrink * shrink * q + tl.sum(w * w, 0)
        rest = shrink * tl.where(moved, s, rest) + tl.sum(low, 0)
        ties = tl.where(moved, 0.0, ties) + tl.sum(tl.where(level, 1.0, 0.0), 0)
        if CUT:
            inside = _inside(x, columns, value, last)
            s = kept_rest + kept_ties
            kept_rest = shrink * tl.where(moved, s, kept_rest) + tl.sum(tl.where(inside, low, 0.0), 0)
            kept_ties = tl.where(moved, 0.0, kept_ties) + tl.sum(tl.where(inside & level, 1.0, 0.0), 0)
        if ORDER < 5:
            if ORDER == 0:
                kept = shrink * (kept + d * s)
                term = w * finite
            if ORDER == 1:
                kept = tl.exp(order * d) * kept + s * shrink * _expm1(e * d)
                term = w * _expm1(e * tl.maximum(y, -100.0))
            if ORDER == 2:
                kept = tl.exp(order * d) * kept
                term = tl.exp(order * y)
            if ORDER == 4:
                term = tl.where(z > -float("inf"), 1.0, 0.0)
            if ORDER != 3:
                kept += tl.sum(tl.where(inside, term, 0.0) if CUT else term, 0)
        m = top
    out += row
    tl.store(out, m)
    tl.store(out + out_stride, rest)
    tl.store(out + 2 * out_stride, ties)
    tl.store(out + 3 * out_stride, t)
    tl.store(out + 4 * out_stride, u)
    tl.store(out + 5 * out_stride, q)
    tl.store(out + 6 * out_stride, kept_rest)
    tl.store(out + 7 * out_stride, kept_ties)
    tl.store(out + 8 * out_stride, kept)


@triton.jit
def _gradient_kernel(  # type: ignore[no-untyped-def]
    logits, row_stride, scales, support, support_stride, values, lasts, slopes, slopes_stride, out, to_stride, V, softcap, order,
    ORDER: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr, CUT: tl.constexpr,
    FLOOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    support += row * support_stride
    out += row * to_stride
    slopes += row
    scale = tl.load(scales + row)
    value = tl.load(values + row) if CUT else 0.0
    last = tl.load(lasts + row) if CUT else 0
    m = tl.load(slopes)
    log_s = tl.load(slopes + slopes_stride)
    a = tl.load(slopes + 2 * slopes_stride)
    b = tl.load(slopes + 3 * slopes_stride)
    c = tl.load(slopes + 4 * slopes_stride)
    d = tl.load(slopes + 5 * slopes_stride)
    e = tl.load(slopes + 6 * slopes_stride)
    f = tl.load(slopes + 7 * slopes_stride)
    g = tl.load(slopes + 8 * slopes_stride)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x, z = _read(logits, support, columns, V, softcap, CAPPED, MASKED)
        y = (z - m) * scale
        l = y - log_s  # log p
        p = tl.exp(l)
        finite = tl.maximum(l, FLOOR)
        result = a + tl.zeros_like(p)
        if B:
            result += b * finite
        if C:
            result += c * finite * finite
        if D:
            result += d * p
        result = result * p
        if ORDER < 4:
            if ORDER == 0:
                term = p * (e + f * finite)
            if ORDER == 1:
                term = p * _expm1((order - 1) * (tl.maximum(l, -100.0) + e)) * f
            if ORDER == 2:
                term = p * e - tl.exp(order * l + g) * f
            if ORDER == 3:
                term = p * e - tl.where(y == 0, f, 0.0)
            result += tl.where(_inside(x, columns, value, last), term, 0.0) if CUT else term
        result = result * scale
        if CAPPED:
            bent = z / softcap
            result = result * (1 - bent * bent)
        result = tl.where(x == -float("inf"), 0.0, result)
        tl.store(out + columns, result.to(out.dtype.element_ty), mask=columns < V)


@torch.library.custom_op("entreg::token_sums", mutates_args=())
def _token_sums(
    logits: Tensor, scale: Tensor, support: Tensor | None, value: Tensor | None, last: Tensor | None, softcap: float, order: float, flags: list[int]
) -> Tensor:
    """Nine sums a row, `[9, N]` float32, in the order of `Parts`."""
    out = torch.empty(9, len(logits), device=logits.device)
    sort, mean, square, collision = flags
    _launch(
        _sums_kernel, logits, scale, support, value, last, (out, out.stride(0)), softcap, order,
        ORDER=sort, MEAN=bool(mean), SQUARE=bool(square), COLLISION=bool(collision),
    )  # fmt: skip
    return out


@_token_sums.register_fake
def _(logits: Tensor, scale: Tensor, *_: Any) -> Tensor:
    return torch.empty(9, len(logits), device=logits.device)


@torch.library.custom_op("entreg::token_gradient", mutates_args=("out",))
def _token_gradient(
    logits: Tensor, scale: Tensor, support: Tensor | None, value: Tensor | None, last: Tensor | None,
    slopes: Tensor, out: Tensor, softcap: float, order: float, flags: list[int],
) -> None:  # fmt: skip
    """Write the gradient `[N, V]` to `out`; `slopes [9, N]` are in the order of `Slopes`."""
    sort, b, c, d = flags
    _launch(
        _gradient_kernel, logits, scale, support, value, last, (slopes, slopes.stride(0), out, out.stride(0)), softcap, order,
        ORDER=sort, B=bool(b), C=bool(c), D=bool(d),
    )  # fmt: skip


@_token_gradient.register_fake
def _(*_: Any) -> None:
    return None


def _launch(
    kernel: Any, logits: Tensor, scale: Tensor, support: Tensor | None, value: Tensor | None, last: Tensor | None,
    results: tuple[Any, ...], softcap: float, order: float, **flags: Any,
) -> None:  # fmt: skip
    n, classes = logits.shape
    if n == 0:
        return
    block = min(BLOCK, triton.next_power_of_2(classes))
    there, step = (scale, 0) if support is None else (support.view(torch.uint8), 0 if support.shape[0] == 1 else support.stride(0))
    kernel[(n,)](
        logits, logits.stride(0), scale, there, step, scale if value is None else value, scale if last is None else last, *results, classes, softcap, order,
        **flags, CAPPED=softcap > 0, MASKED=support is not None, CUT=value is not None, FLOOR=FLOOR, BLOCK=block, num_warps=max(1, min(16, block // 512)),
    )  # fmt: skip


def _inputs(operands: Operands, spec: Spec) -> tuple[Any, ...]:
    """Logits with classes side by side, float32 scales, the support by bytes, the cut; soft-cap and order as floats."""
    logits, scale, support, cut = operands
    logits = logits if logits.stride(-1) == 1 or logits.shape[1] == 1 else logits.contiguous()
    support = support if support is None or support.stride(-1) == 1 else support.contiguous()
    value, last = (None, None) if cut is None else (cut.value.float().contiguous(), cut.last.contiguous())
    return logits, scale.float().contiguous(), support, value, last


def _scalars(spec: Spec) -> tuple[float, float]:
    order = spec.order
    return (0.0 if spec.softcap is None else spec.softcap), (0.0 if order is None or math.isinf(order) else order)


def why_not(logits: Tensor) -> str | None:
    """Why these logits cannot be given to the kernels, None where they can."""
    if logits.dtype == torch.float64:
        return "float64 logits: the kernels compute in float32"
    return None if logits.device.type == "cuda" or INTERPRETED else f"no Triton on {logits.device.type}"


def sums(operands: Operands, spec: Spec) -> Parts:
    """Sums of each row, [N, 1]: see the package."""
    mean = spec.shannon or spec.varentropy
    flags = [ORDERS.index(kind(spec.order)), int(mean), int(spec.varentropy), int(spec.collision)]
    softcap, order = _scalars(spec)
    m, rest, ties, t, u, q, kept_rest, kept_ties, kept = _token_sums(*_inputs(operands, spec), softcap, order, flags).double().unsqueeze(-1)
    cut, ordered = operands.cut is not None, spec.order is not None and not math.isinf(spec.order)
    return Parts(
        m, rest, ties, t if mean else None, u if spec.varentropy else None, q if spec.collision else None,
        kept_rest if cut else None, kept_ties if cut else None, kept if ordered else None,
    )  # fmt: skip


def gradient(operands: Operands, spec: Spec, slopes: Slopes, out: Tensor) -> None:
    """Writes the derivative with respect to the logits to `out` [N, V], which may be the logits: see the package."""
    nothing = torch.zeros_like(slopes.A)
    rows = torch.stack([(nothing if row is None else row).flatten().float() for row in slopes])
    flags = [ORDERS.index(kind(spec.order if slopes.E is not None else None)), *(int(row is not None) for row in (slopes.B, slopes.C, slopes.D))]
    inputs, where = _inputs(operands, spec), out if out.stride(-1) == 1 or out.shape[1] == 1 else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    if where is operands.logits:  # a custom operator may not write over what it reads
        _token_gradient._init_fn(*inputs, rows, where, *_scalars(spec), flags)
    else:
        _token_gradient(*inputs, rows, where, *_scalars(spec), flags)
    if where is not out:
        out.copy_(where)
